"""Is a checkpoint better than another one? Compared item by item, task by task, then over all tasks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recorder.leaderboard import main_metrics, metric_key
from recorder.ledger import ItemRow, Ledger, ScoreRow
from recorder.statistics import Difference, mean, mean_difference, paired_difference


@dataclass(frozen=True)
class TaskVerdict:
    """``new`` and ``old`` are the scores. ``paired`` is false when the items were not kept: then both errors add."""

    metric: str  # <task>.<metric>
    new: float
    old: float
    difference: Difference
    paired: bool


@dataclass(frozen=True)
class Verdict:
    """``overall`` is the mean over the tasks of the differences; ``None`` when there is nothing to compare."""

    model: str
    new_iteration: int
    old_iteration: int
    overall: Difference | None
    tasks: tuple[TaskVerdict, ...]

    @property
    def word(self) -> str:
        return "cannot tell" if self.overall is None else self.overall.verdict


def newest_verdict(ledger: Ledger, scores: Sequence[ScoreRow], model: str) -> Verdict | None:
    """The newest evaluated checkpoint of ``model`` against the one before it; ``None`` when there are not two.

    Each task enters with its main metric (``leaderboard.main_metrics``).
    """
    mine = [row for row in scores if row.model == model]
    iterations = sorted({row.iteration for row in mine})
    if len(iterations) < 2:
        return None
    old, new = iterations[-2:]
    main = main_metrics(mine)
    scored = {(row.iteration, metric_key(row)): row for row in mine if row.iteration in (old, new)}
    outcomes = {at: _outcomes(ledger.items(model, at)) for at in (old, new)}
    tasks = []
    for key in main.values():
        before, after = scored.get((old, key)), scored.get((new, key))
        if before is None or after is None:
            continue
        difference = paired_difference(outcomes[new].get(key, {}), outcomes[old].get(key, {}))
        paired = difference is not None
        if difference is None:
            difference = _unpaired(after, before)
        if difference is not None:
            tasks.append(TaskVerdict(key, after.value, before.value, difference, paired))
    return Verdict(model, new, old, mean_difference([task.difference for task in tasks]), tuple(tasks))


def _outcomes(items: Sequence[ItemRow]) -> Mapping[str, Mapping[str, float]]:
    """Per ``<task>.<metric>`` the outcome of each item; repeats of an item are averaged first."""
    repeats: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        repeats[f"{item.task}.{item.metric}"][item.key].append(item.value)
    return {
        metric: {key: values[0] if len(values) == 1 else mean(values) for key, values in by_key.items()}
        for metric, by_key in repeats.items()
    }


def _unpaired(new: ScoreRow, old: ScoreRow) -> Difference | None:
    """Source: Miller 2024 (arXiv 2411.00640), equation 5: sqrt(SE_new^2 + SE_old^2)."""
    if new.stderr is None or old.stderr is None:
        return None
    stderr = math.hypot(new.stderr, old.stderr)
    return Difference(new.value - old.value, stderr if stderr > 0 else 1.0 / max(1, new.n), new.n)
