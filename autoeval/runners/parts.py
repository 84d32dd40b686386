"""The jobs of one stage of one checkpoint: the files that say what each is to do, and those in which it tells of it."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoeval.runners.arrays import Array, Arrays, Member, array_of
from autoeval.runners.jobs import Resources
from autoeval.runners.progress import Progress
from autoeval.tasks.claims import Claims
from autoeval.tasks.events import Tail
from autoeval.tasks.order import Order, Stage, load_order, save_order
from autoeval.tasks.plan import EvaluationPlan
from autoeval.tasks.shares import Cut

LAST_WORDS = ("checkpoint_done", "checkpoint_failed", "checkpoint_missed")


@dataclass(eq=False)
class Part:
    """One job, or one element of an array."""

    order: Order
    member: Member
    tail: Tail
    progress: Progress | None = None  # since it was seen to have started
    last_word: str = ""  # its last event, once it has told it
    doomed: str = ""  # why it was cancelled, to be tried again
    end_asked_until: float = 0.0  # when its end is asked for again
    unwanted: bool = False  # it was cancelled for good
    ended: bool = False
    silent_since: float | None = None  # when the queue said that it ended well, which it has not said itself

    def whole(self) -> bool:
        return self.last_word == "checkpoint_done"

    def has_loaded(self) -> bool:
        return self.progress is not None and self.progress.loaded

    @property
    def claims(self) -> Claims:
        return Claims(Path(self.order.claims), self.order.owner)


@dataclass(frozen=True)
class Wish:
    """Parts that are to be written down as soon as the queue is there; see ``add_parts``."""

    parts: Sequence[Sequence[str]]
    together: bool = True
    in_use: str | None = None


@dataclass(eq=False)
class Batch:
    """All parts of one stage of ``plan``; ``arrays`` are those of them that have not ended. Parts that died may have
    successors. ``place`` is where a former daemon has submitted it; ``ahead``: it was begun before its turn. ``cuts`` and
    ``turns`` are those of ``Dealt``."""

    stage: Stage
    plan: EvaluationPlan
    folder: Path
    parts: list[Part] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    place: Any = None
    ahead: bool = False
    converted: bool = False
    cuts: tuple[Cut, ...] = ()
    turns: tuple[str, ...] = ()

    def wish(self, parts: Sequence[Sequence[str]], *, together: bool = True, in_use: str | None = None) -> None:
        self.wishes.append(Wish(parts, together, in_use))

    def alive(self) -> list[Part]:
        return [part for part in self.parts if not part.ended]

    def part_of(self, member: Member) -> Part:
        return next(part for part in self.parts if part.member is member)


def new_batch(stage: Stage, plan: EvaluationPlan) -> Batch:
    return Batch(stage, plan, Path(plan.directory, "jobs", f"{stage}-{uuid.uuid4().hex[:8]}"))


def add_parts(
    batch: Batch,
    steps: Sequence[Sequence[str]],
    arrays: Arrays,
    resources: Resources,
    *,
    together: bool = True,
    in_use: str | None = None,
) -> list[Array]:
    """A part for each of ``steps``, what it begins with, written down as one array, or as many where the queue has none."""
    parts: list[Part] = []
    before = len(list(batch.folder.glob("*.order.json")))  # a former daemon's too
    for mine in steps:
        owner = f"part{before + len(parts)}"
        order = Order(
            batch.stage,
            replace(batch.plan, together=batch.plan.together and together),
            owner,
            str(batch.folder / f"{owner}.events.jsonl"),
            str(batch.folder / "claims"),
            tuple(mine),
            in_use,
            batch.cuts,
            batch.turns,
        )
        save_order(batch.folder / f"{owner}.order.json", order)
        parts.append(_part(order, batch.folder / f"{owner}.order.json"))
    batch.parts += parts
    groups = [parts] if arrays.queue.arrays else [[part] for part in parts]
    made = [arrays.write_down([part.member for part in group], batch.folder, resources) for group in groups]
    batch.arrays += made
    return made


def _part(order: Order, path: Path) -> Part:
    ref = order.plan.checkpoint
    verb = {"convert": "convert", "evaluate": order.owner}[order.stage]
    member = Member(
        name=f"{ref.model}-{ref.iteration}-{verb}",
        command=[sys.executable, "-m", "autoeval.tasks.worker", "--order", str(path)],
        log=path.with_name(f"{order.owner}.log"),
        record=path.with_name(f"{order.owner}.record.json"),
        whole=lambda: False,
    )
    part = Part(order, member, Tail(Path(order.events)))
    member.whole = part.whole
    return part


def adopted(manifest: Path) -> tuple[Array, list[Part]]:
    """The array that a former process wrote down in ``manifest``, and its parts, whose events are to be read anew.

    Raises ``OSError``, ``ValueError``, ``KeyError`` or ``TypeError`` for files that are not there or not ours.
    """
    content = json.loads(manifest.read_text(encoding="utf-8"))
    array = array_of(manifest, content)
    parts = []
    for number, known in enumerate(array.members):
        path = Path(known.command[-1])
        part = _part(load_order(path), path)
        part.member.array, part.member.number = array, number
        parts.append(part)
    array.members = [part.member for part in parts]
    return array, parts
