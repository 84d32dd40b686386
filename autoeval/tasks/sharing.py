"""Evaluating one share of a task, and joining all of them into the task's result.

Shares are kept as ``stored.py`` keeps predictions: a record an item, with what it was made from. Metrics, their errors and
what else needs all items are computed once, of all records in the items' order, by the code that an undivided task has. HELM's
runs are files of their own already: there a share is some of a benchmark's run entries, and joining reads all runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.tasks.cutting import cut_samples, cut_walk
from autoeval.tasks.metering import Meter
from autoeval.tasks.plan import EvaluationPlan
from autoeval.tasks.shares import Cut, ShareFiles
from autoeval.tasks.work import Outcome, Work, existing_result, run_helm
from recorder.files import write_json

# Of a task's cost: what does not add up over shares. Means of a benchmark's prompts are found anew for the joined one.
_MEANS = frozenset({"num_train_instances", "prompt_truncated"})
_NOT_ADDED = _MEANS | {"tokens_per_second", "peak_memory_bytes"}


class SharedTask:
    """``work`` of ``plan``, in the shares of ``cut``."""

    def __init__(self, plan: EvaluationPlan, work: Work, cut: Cut) -> None:
        self.work, self.cut = work, cut
        self._plan = plan
        self._files = ShareFiles(plan, work.name, work.version)

    def left(self) -> list[str]:
        """The names of the shares that nobody has finished."""
        return self._files.left(self.cut)

    def is_left(self, name: str) -> bool:
        # In this order: where there is a result, shares have been removed.
        return not self._files.path(self.cut.names.index(name)).exists() and self._has_no_result()

    def is_joinable(self) -> bool:
        return not self.left() and self._has_no_result()

    def _has_no_result(self) -> bool:
        return existing_result(self._plan, self.work.name, self.work.version) is None

    def evaluate(self, name: str, model: Any) -> dict[str, Any]:
        """What ``keep`` keeps of one share. Raises as the undivided task does."""
        started = time.perf_counter()
        items = self._items()[self.cut.names.index(name)]
        prepared = time.perf_counter() - started
        meter = Meter(model)
        records, own = self._asked(items, model)
        return {"items": items, "records": records, "cost": {**own, **meter.read().cost(own_seconds=prepared)}}

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self._files.path(self.cut.names.index(name)), content, indent=None)

    def joined(self, model: Any) -> tuple[Outcome, dict[str, float]]:
        """The task's outcome from all shares, and its cost.

        Raises ``StoredError`` for shares that are not of today's data, and what scoring raises.
        """
        started = time.perf_counter()
        contents = [json.loads(self._files.path(number).read_text("utf-8")) for number in range(len(self.cut.weights))]
        _refuse_other_items([content["items"] for content in contents], self._size(), self._files.directory)
        if self.work.source == "helm":
            outcome = run_helm(self._plan, self.work, model)
        else:
            outcome = self._scored(contents)
        cost = joined_cost([content["cost"] for content in contents], time.perf_counter() - started)
        outcome = dataclasses.replace(outcome, cost={k: v for k, v in outcome.cost.items() if k in _MEANS})
        return outcome, cost

    def _asked(self, items: Sequence[int], model: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
        if self.work.source == "helm":
            chosen = tuple(self.work.task.entries[number] for number in items)
            part = dataclasses.replace(self.work, task=dataclasses.replace(self.work.task, entries=chosen))
            return [], run_helm(self._plan, part, model).cost
        from autoeval.tasks.icl import infer_samples

        some = self._some(items)
        made = infer_samples(some, model, some.samples)
        return [{**record, "made_from": origin} for record, origin in zip(made, self._origins(some), strict=True)], {}

    def _scored(self, contents: Sequence[Mapping[str, Any]]) -> Outcome:
        from autoeval.tasks.icl import icl_outcome
        from autoeval.tasks.stored import check_records

        records: dict[int, dict[str, Any]] = {}
        for number, content in enumerate(contents):
            expected = self._origins(self._some(content["items"]))
            check_records(self._files.path(number), content["records"], expected)
            records |= zip(content["items"], content["records"], strict=True)
        whole = [{k: v for k, v in records[number].items() if k != "made_from"} for number in range(len(records))]
        found = icl_outcome(self.work.task, whole)
        return Outcome(found.predictions, found.scores, found.items)

    def _some(self, items: Sequence[int]) -> Any:
        return dataclasses.replace(self.work.task, samples=tuple(self.work.task.samples[number] for number in items))

    def _origins(self, some: Any) -> list[dict[str, str]]:
        from autoeval.tasks.stored import origins

        return origins(some, self._plan.checkpoint.fingerprint)

    def _size(self) -> int:
        """Of samples, or of run entries."""
        return len(self.work.task.entries if self.work.source == "helm" else self.work.task.samples)

    def _items(self) -> list[list[int]]:
        """The items of each share: whoever comes first says it for all."""
        path = self._files.items_path
        if not path.exists():
            if self.work.source == "helm":
                alike = [1.0] * self._size()
                made = [list(stretch) for stretch in cut_walk(alike, [0.0] * self._size(), self.cut.weights)]
            else:
                made = cut_samples(self.work.task, self.cut.weights)
            _write_if_first(path, made)
        items: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_items(items, self._size(), path)
        if len(items) != len(self.cut.weights):
            raise ValueError(f"{path}: {len(items)} shares, expected {len(self.cut.weights)}")
        return items


def joined_cost(costs: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
    """The cost of a task from those of its shares, and the ``seconds`` that joining took: sums, but of memory the most and
    the rate of all. ``shares``: how many there were."""
    total = {name: round(sum(cost[name] for cost in costs), 6) for name in costs[0] if name not in _NOT_ADDED}
    total["wall_seconds"] = round(total["wall_seconds"] + seconds, 6)
    rate = total["computed_tokens"] / total["seconds"] if total["seconds"] > 0 else 0.0
    most = max(cost["peak_memory_bytes"] for cost in costs)
    return {**total, "tokens_per_second": round(rate, 3), "peak_memory_bytes": most, "shares": float(len(costs))}


def _refuse_other_items(shares: Sequence[Collection[int]], size: int, where: Path) -> None:
    if sorted(item for share in shares for item in share) != list(range(size)):
        raise ValueError(f"{where}: its shares do not have each of {size} items once; remove it and try again")


def _write_if_first(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    write_json(temporary, content, indent=None)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
