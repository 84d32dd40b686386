"""Is a checkpoint better than another one? Compared item by item, over all tasks (the one headline) and task by task.

A checkpoint is held against the one before it, the best one before it, and each baseline. Three corrections keep the
claims honest: Holm's for the number of tasks, a share of the error rate for the number of looks at this run
(``share_of_look``), and for a drop from the best of m checkpoints one for m, because the best of many was lucky.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from recorder.baselines import Baseline
from recorder.leaderboard import above_chance, levels_of_chance, main_metrics, metric_key
from recorder.ledger import Outcomes, ScoreRow
from recorder.statistics import (
    Z95,
    Difference,
    checkpoint_noise,
    holm,
    mean_difference,
    paired_difference,
    share_of_look,
    unpaired_difference,
    with_spread,
)

Against = Literal["previous", "best", "baseline", "chosen"]
ItemsOf = Callable[[str, int], Mapping[str, Outcomes]]  # (model, iteration) -> <task>.<metric> -> outcomes
Place = tuple[str, int]  # (model, iteration)

NO_ITEMS: ItemsOf = lambda model, iteration: {}  # noqa: E731 - of published figures


@dataclass(frozen=True)
class TaskVerdict:
    """``new`` and ``old`` are the scores; up is good in ``difference`` also where the metric is better when lower.

    The difference's p-value is the corrected one, ``p_alone`` the one of this comparison by itself. ``paired`` is
    false when the items were not kept: then both errors add. ``averaged`` says whether the task is in the headline.
    ``noise`` is by how much a single checkpoint's score scatters (one standard deviation, of the last checkpoints).
    """

    metric: str  # <task>.<metric>
    new: float
    old: float
    difference: Difference
    paired: bool
    p_alone: float = 1.0
    averaged: bool = True
    noise: float | None = None
    old_iteration: int | None = None  # of the checkpoint compared with

    @property
    def word(self) -> str:
        return self.difference.verdict

    @property
    def word_alone(self) -> str:
        """What would be said of this comparison if it were the only one ever made: a hint, not a claim."""
        return replace(self.difference, p_value=self.p_alone).verdict

    @property
    def beyond_noise(self) -> bool | None:
        """Larger than what two checkpoints of a run that stands still differ by; ``None`` when that is not known."""
        return None if self.noise is None else abs(self.difference.value) > Z95 * 2**0.5 * self.noise


@dataclass(frozen=True)
class Verdict:
    """``overall`` is the mean over the averaged tasks of the chance-corrected differences; ``None`` without any.

    ``opponent`` is a model's or baseline's name; ``old_iteration`` is ``None`` for a baseline. ``look`` counts how
    often this run has been compared so far.
    """

    model: str
    new_iteration: int
    old_iteration: int | None
    overall: Difference | None
    tasks: tuple[TaskVerdict, ...]
    against: Against = "previous"
    opponent: str = ""
    look: int = 1
    p_alone: float = 1.0

    @property
    def word(self) -> str:
        return "cannot tell" if self.overall is None else self.overall.verdict

    @property
    def regressions(self) -> tuple[TaskVerdict, ...]:
        """The tasks that are worse, after all corrections; the largest drop first."""
        worse = [task for task in self.tasks if task.word == "worse"]
        return tuple(sorted(worse, key=lambda task: task.difference.value))


@dataclass(frozen=True)
class CheckpointVerdict:
    """One checkpoint against everything it can be held against.

    ``regressions`` are the tasks on which it is significantly worse than an earlier checkpoint: each task against the
    one that was best at it, corrected for having chosen the best. The largest drop first.
    """

    model: str
    iteration: int
    previous: Verdict | None = None
    best: Verdict | None = None
    baselines: tuple[Verdict, ...] = field(default=())
    regressions: tuple[TaskVerdict, ...] = field(default=())

    @property
    def all(self) -> tuple[Verdict, ...]:
        return tuple(v for v in (self.previous, self.best, *self.baselines) if v is not None)


def checkpoint_verdict(
    scores: Sequence[ScoreRow],
    model: str,
    iteration: int | None = None,
    *,
    baselines: Sequence[Baseline] = (),
    items: ItemsOf = NO_ITEMS,
) -> CheckpointVerdict | None:
    """The checkpoint (the newest when ``iteration`` is ``None``) of ``model``; ``None`` when it has no scores.

    ``items`` is ``ledger.outcomes``. The best one is the earlier checkpoint with the highest chance-corrected mean
    among those that have every averaged task of this one.
    """
    mine = [row for row in scores if row.model == model]
    main = main_metrics(mine, baselines)
    mine = compared(mine, main)
    iterations = sorted({row.iteration for row in mine})
    new = iterations[-1] if iteration is None and iterations else iteration
    if new is None or new not in iterations:
        return None
    earlier = [one for one in iterations if one < new]
    look = max(1, len(earlier))
    previous = best = None
    regressions: tuple[TaskVerdict, ...] = ()
    if earlier:
        previous = compare(mine, (model, new), (model, earlier[-1]), baselines=baselines, items=items, look=look)
        previous = replace(previous, against="previous")
        at = _best_of(mine, main, new, earlier)
        best = compare(
            mine, (model, new), (model, at), baselines=baselines, items=items, look=look, of_many=len(earlier)
        )
        best = replace(best, against="best")
        regressions = _regressions(mine, main, (model, new), earlier, baselines, items, look)
    against = tuple(against_baseline(mine, (model, new), one, baselines=baselines, look=look) for one in baselines)
    return CheckpointVerdict(model, new, previous, best, tuple(one for one in against if one.tasks), regressions)


def compare(
    scores: Sequence[ScoreRow],
    new: Place,
    old: Place,
    *,
    baselines: Sequence[Baseline] = (),
    items: ItemsOf = NO_ITEMS,
    look: int = 1,
    of_many: int = 1,
) -> Verdict:
    """``new`` against ``old``, two places of ``scores``: checkpoints of one model or of two.

    Each task enters with its main metric (``leaderboard.main_metrics``); one that has none (perplexity) is compared by
    its first metric and left out of the headline. ``of_many``: ``old`` is the best of so many.
    """
    chosen = [row for row in scores if row.model in (new[0], old[0])]
    main = main_metrics(chosen, baselines)
    first = {row.task: metric_key(row) for row in chosen if row.position == 0}
    scored = {(row.model, row.iteration, metric_key(row)): row for row in chosen}
    outcomes = {place: items(*place) for place in (new, old)}
    courses: dict[str, list[ScoreRow]] = defaultdict(list)
    for row in chosen:
        if row.model == new[0] and row.iteration <= new[1]:
            courses[metric_key(row)].append(row)
    tasks = []
    for task, key in sorted((first | main).items()):
        after, before = scored.get((*new, key)), scored.get((*old, key))
        if after is None or before is None or after.task_version != before.task_version:
            continue
        pair = [outcomes[place].get(key, Outcomes()) for place in (new, old)]
        clusters = {**pair[1].clusters, **pair[0].clusters}
        difference = paired_difference(pair[0].values, pair[1].values, clusters)
        paired = difference is not None
        if difference is None:
            difference = _of_scores(after, before.value, before.stderr, before.n)
        if difference is not None:
            difference = difference if after.higher_is_better else difference.turned()
            noise = checkpoint_noise(*_course(courses[key]))
            tasks.append(
                TaskVerdict(key, after.value, before.value, difference, paired, 1.0, task in main, noise, old[1])
            )
    verdict = Verdict(new[0], new[1], old[1], None, tuple(tasks), "chosen", old[0], look)
    return _corrected(verdict, levels_of_chance(chosen), of_many)


def against_baseline(
    scores: Sequence[ScoreRow], new: Place, baseline: Baseline, *, baselines: Sequence[Baseline] = (), look: int = 1
) -> Verdict:
    """``new`` against published figures, which have no items: the errors add; one without an error counts as exact."""
    chosen = [row for row in scores if row.model == new[0]]
    main = main_metrics(chosen, baselines or [baseline])
    scored = {metric_key(row): row for row in chosen if row.iteration == new[1]}
    tasks = []
    for key in sorted(baseline.values.keys() & scored.keys()):
        row, value = scored[key], baseline.values[key]
        if key not in main.values() and row.position != 0:
            continue
        difference = _of_scores(row, value, baseline.stderrs.get(key, 0.0), row.n)
        if difference is not None:
            difference = difference if row.higher_is_better else difference.turned()
            tasks.append(TaskVerdict(key, row.value, value, difference, False, 1.0, key in main.values()))
    verdict = Verdict(new[0], new[1], None, None, tuple(tasks), "baseline", baseline.name, look)
    return _corrected(verdict, levels_of_chance(chosen, [baseline]), 1)


def _of_scores(row: ScoreRow, old: float, old_stderr: float | None, old_n: int) -> Difference | None:
    new_stderr = with_spread(row.value, row.stderr, row.n)
    old_stderr = with_spread(old, old_stderr, old_n) if old_stderr is not None else None
    if new_stderr is None or old_stderr is None:
        return None
    return unpaired_difference(row.value, new_stderr, old, old_stderr, row.n)


def _corrected(verdict: Verdict, chance: Mapping[str, float], of_many: int) -> Verdict:
    averaged = [task for task in verdict.tasks if task.averaged]
    overall = mean_difference([t.difference.scaled(1 / (1 - chance.get(t.metric, 0.0))) for t in averaged])
    share = share_of_look(verdict.look)
    together = holm([task.difference.p_value for task in verdict.tasks])
    tasks = [
        replace(task, p_alone=task.difference.p_value, difference=_with_p(task.difference, p / share, of_many))
        for task, p in zip(verdict.tasks, together, strict=True)
    ]
    if overall is None:
        return replace(verdict, tasks=tuple(tasks))
    corrected = _with_p(overall, overall.p_value / share, of_many)
    return replace(verdict, tasks=tuple(tasks), overall=corrected, p_alone=overall.p_value)


def _with_p(difference: Difference, p_value: float, of_many: int) -> Difference:
    return replace(difference, p_value=min(1.0, p_value * (of_many if difference.value < 0 else 1)))


def _best_of(rows: Sequence[ScoreRow], main: Mapping[str, str], new: int, earlier: Sequence[int]) -> int:
    """The earlier iteration with the highest mean over the main metrics of ``new``; the last of equals."""
    keys = {metric_key(row) for row in rows if row.iteration == new} & set(main.values())
    chance = levels_of_chance(rows)
    points: dict[int, list[float]] = {one: [] for one in earlier}
    for row in rows:
        if row.iteration in points and metric_key(row) in keys:
            points[row.iteration].append(above_chance(row.value, chance.get(metric_key(row), 0.0)))
    whole = {one: sum(values) for one, values in points.items() if keys and len(values) == len(keys)}
    return max(whole, key=lambda one: (whole[one], one)) if whole else earlier[-1]


def _regressions(
    rows: Sequence[ScoreRow],
    main: Mapping[str, str],
    new: Place,
    earlier: Sequence[int],
    baselines: Sequence[Baseline],
    items: ItemsOf,
    look: int,
) -> tuple[TaskVerdict, ...]:
    """Each task against the earlier checkpoint that was best at it; the last of equals."""
    courses: dict[str, list[ScoreRow]] = defaultdict(list)
    for row in rows:
        courses[metric_key(row)].append(row)
    by_old: dict[int, list[ScoreRow]] = defaultdict(list)
    for course in courses.values():
        before = [row for row in course if row.iteration < new[1]]
        if before and any(row.iteration == new[1] for row in course):
            best = max(before, key=lambda row: (row.value if row.higher_is_better else -row.value, row.iteration))
            by_old[best.iteration] += course
    found: list[TaskVerdict] = []
    for old, both in sorted(by_old.items()):
        only = compare(both, new, (new[0], old), baselines=baselines, items=items)
        found += [replace(task, averaged=task.metric in main.values()) for task in only.tasks]
    chosen = tuple(replace(task, difference=replace(task.difference, p_value=task.p_alone)) for task in found)
    return _corrected(Verdict(new[0], new[1], None, None, chosen, look=look), {}, len(earlier)).regressions


def _course(rows: Sequence[ScoreRow]) -> tuple[list[float], list[float]]:
    """(values, iterations) of one metric, ascending."""
    ordered = sorted(rows, key=lambda row: row.iteration)
    return [row.value for row in ordered], [float(row.iteration) for row in ordered]


def compared(rows: Sequence[ScoreRow], main: Mapping[str, str]) -> list[ScoreRow]:
    """Of each task its main metric, or the first one of a task that has none; a task may have many more."""
    wanted = {(task, key.rpartition(".")[2]) for task, key in main.items()}
    return [row for row in rows if (row.task, row.metric) in wanted or (row.position == 0 and row.task not in main)]
