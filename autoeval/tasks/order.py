"""What one job of a cluster is to do, as a file that all machines see."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from autoeval.tasks.plan import EvaluationPlan, plan_from_json
from autoeval.tasks.shares import Cut
from recorder.files import write_json

Stage = Literal["convert", "evaluate"]


@dataclass(frozen=True)
class Order:
    """``convert`` the checkpoint of ``plan``, or ``evaluate`` its tasks: first ``mine``, then what no other job of
    ``claims`` has begun, in the order of ``turns`` (``Dealt``, as are ``cuts``). What happens is told in the file
    ``events``; ``owner`` signs claims. ``in_use`` is a converted model that must not be removed to make room."""

    stage: Stage
    plan: EvaluationPlan
    owner: str
    events: str
    claims: str = ""
    mine: tuple[str, ...] = ()
    in_use: str | None = None
    cuts: tuple[Cut, ...] = ()
    turns: tuple[str, ...] = ()


def save_order(path: Path, order: Order) -> None:
    write_json(path, asdict(order))


def load_order(path: Path) -> Order:
    content = json.loads(path.read_text(encoding="utf-8"))
    cuts = tuple(Cut(one["task"], tuple(one["weights"])) for one in content.get("cuts", ()))
    lists = {name: tuple(content.get(name, ())) for name in ("mine", "turns")}
    return Order(**{**content, **lists, "cuts": cuts, "plan": plan_from_json(content["plan"])})
