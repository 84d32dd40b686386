"""Is a checkpoint better than another one? Compared item by item, over all tasks (the one headline) and task by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recorder.baselines import Baseline
from recorder.leaderboard import main_metrics, metric_key
from recorder.ledger import ItemRow, Ledger, ScoreRow
from recorder.statistics import Difference, holm, mean, mean_difference, paired_difference, unpaired_difference


@dataclass(frozen=True)
class TaskVerdict:
    """``new`` and ``old`` are the scores; the difference's p-value is corrected for the number of tasks (Holm).

    ``paired`` is false when the items were not kept: then both errors add.
    """

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


def newest_verdict(
    ledger: Ledger, scores: Sequence[ScoreRow], model: str, baselines: Sequence[Baseline] = ()
) -> Verdict | None:
    """The newest evaluated checkpoint of ``model`` against the one before it; ``None`` when there are not two.

    Each task enters with its main metric (``leaderboard.main_metrics``).
    """
    mine = [row for row in scores if row.model == model]
    iterations = sorted({row.iteration for row in mine})
    if len(iterations) < 2:
        return None
    old, new = iterations[-2:]
    main = main_metrics(mine, baselines)
    scored = {(row.iteration, metric_key(row)): row for row in mine if row.iteration in (old, new)}
    outcomes = {at: _outcomes(ledger.items(model, at)) for at in (old, new)}
    tasks = []
    for key in main.values():
        before, after = scored.get((old, key)), scored.get((new, key))
        if before is None or after is None:
            continue
        difference = paired_difference(outcomes[new].get(key, {}), outcomes[old].get(key, {}))
        paired = difference is not None
        if difference is None and after.stderr is not None and before.stderr is not None:
            difference = unpaired_difference(after.value, after.stderr, before.value, before.stderr, after.n)
        if difference is not None:
            tasks.append(TaskVerdict(key, after.value, before.value, difference, paired))
    overall = mean_difference([task.difference for task in tasks])
    corrected = holm([task.difference.p_value for task in tasks])
    return Verdict(model, new, old, overall, tuple(_with_p(task, p) for task, p in zip(tasks, corrected, strict=True)))


def _with_p(task: TaskVerdict, p_value: float) -> TaskVerdict:
    return replace(task, difference=replace(task.difference, p_value=p_value))


def _outcomes(items: Sequence[ItemRow]) -> Mapping[str, Mapping[str, float]]:
    """Per ``<task>.<metric>`` the outcome of each item; repeats of an item are averaged first."""
    repeats: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        repeats[f"{item.task}.{item.metric}"][item.key].append(item.value)
    return {
        metric: {key: values[0] if len(values) == 1 else mean(values) for key, values in by_key.items()}
        for metric, by_key in repeats.items()
    }
