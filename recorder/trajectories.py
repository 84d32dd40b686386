"""What became of each item over training: when it was learned, when it was forgotten.

Forgetting is a significant number of correct answers turned wrong, not a drop of a mean: a mean can stand still while
a tenth of the items is exchanged, and can drop by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recorder.ledger import Ledger, Outcomes
from recorder.statistics import LEVEL, exact_mcnemar, holm, paired_difference

RIGHT = 0.5  # an outcome from which on an item counts as right (of repeats and of F1 alike)
STAYS = 2  # checkpoints in a row that make an item learned (or forgotten): one may be luck


@dataclass(frozen=True)
class ItemTrajectory:
    """``outcomes`` by checkpoint, in the order of ``TaskTrajectories.iterations``; ``None`` where it was not asked.

    ``learned_at``: the iteration from which on it was right ``STAYS`` times in a row for the first time;
    ``forgotten_at``: after that, from which on it has been wrong until the end, at least ``STAYS`` times. ``flips``
    counts the changes between right and wrong.
    """

    key: str
    outcomes: tuple[float | None, ...]
    learned_at: int | None
    forgotten_at: int | None
    flips: int


@dataclass(frozen=True)
class Forgetting:
    """From ``old`` to ``new``: ``lost`` items were right and are wrong now, ``gained`` the other way.

    ``p_value`` is that of as many losses by chance (one-sided exact McNemar, of clusters where items have them;
    Holm-corrected over the pairs looked at, and those that the best was chosen among); ``significant`` when it is below 5 %. ``keys`` are the lost items.
    """

    metric: str
    old: int
    new: int
    lost: int
    gained: int
    n: int
    p_value: float
    keys: tuple[str, ...] = ()

    @property
    def significant(self) -> bool:
        return self.lost > self.gained and self.p_value < LEVEL


@dataclass(frozen=True)
class TaskTrajectories:
    """``forgetting`` has each neighbouring pair of checkpoints, and last the best checkpoint against the newest."""

    model: str
    metric: str  # <task>.<metric>
    iterations: tuple[int, ...]
    items: tuple[ItemTrajectory, ...]
    forgetting: tuple[Forgetting, ...]

    @property
    def never_learned(self) -> int:
        return sum(item.learned_at is None for item in self.items)

    @property
    def forgotten(self) -> tuple[ItemTrajectory, ...]:
        return tuple(item for item in self.items if item.forgotten_at is not None)


def trajectories(ledger: Ledger, model: str, *, metrics: Sequence[str] = ()) -> list[TaskTrajectories]:
    """Of each metric of ``model`` that has items (or of ``metrics``, ``<task>.<metric>``), by name."""
    iterations = sorted({row.iteration for row in ledger.checkpoints() if row.model == model and not row.superseded})
    by_metric: dict[str, dict[int, Outcomes]] = {}
    for iteration in iterations:
        for key, outcomes in ledger.outcomes(model, iteration).items():
            if outcomes.values and (not metrics or key in metrics):
                by_metric.setdefault(key, {})[iteration] = outcomes
    return [task_trajectories(model, key, courses) for key, courses in sorted(by_metric.items())]


def task_trajectories(model: str, metric: str, courses: Mapping[int, Outcomes]) -> TaskTrajectories:
    """``courses``: the outcomes by iteration."""
    iterations = tuple(sorted(courses))
    keys = sorted({key for outcomes in courses.values() for key in outcomes.values})
    items = tuple(
        item_trajectory(key, iterations, tuple(courses[at].values.get(key) for at in iterations)) for key in keys
    )
    pairs, passed_over = list(itertools.pairwise(iterations)), 0
    best = max(iterations[:-1], key=lambda at: (_level(courses[at]), at), default=None)
    if best is not None and best != iterations[-2]:
        pairs.append((best, iterations[-1]))
        passed_over = len(iterations) - 3  # the best of many was lucky: those it was chosen among count as looked at
    found = [_forgetting(metric, old, new, courses) for old, new in pairs]
    corrected = holm([one.p_value for one in found] + [1.0] * passed_over)[: len(found)]
    forgetting = tuple(replace(one, p_value=p) for one, p in zip(found, corrected, strict=True))
    return TaskTrajectories(model, metric, iterations, items, forgetting)


def item_trajectory(key: str, iterations: Sequence[int], outcomes: Sequence[float | None]) -> ItemTrajectory:
    seen = [(at, value >= RIGHT) for at, value in zip(iterations, outcomes, strict=True) if value is not None]
    learned = forgotten = None
    for place in range(len(seen) - STAYS + 1):
        if all(right for _, right in seen[place : place + STAYS]):
            learned = place
            break
    if learned is not None:
        wrong = len(seen)
        while wrong > learned and not seen[wrong - 1][1]:
            wrong -= 1
        if len(seen) - wrong >= STAYS:
            forgotten = seen[wrong][0]
    flips = sum(before != after for (_, before), (_, after) in itertools.pairwise(seen))
    learned_at = None if learned is None else seen[learned][0]
    return ItemTrajectory(key, tuple(outcomes), learned_at, forgotten, flips)


def _level(outcomes: Outcomes) -> float:
    return sum(outcomes.values.values()) / max(1, len(outcomes.values))


def _forgetting(metric: str, old: int, new: int, courses: Mapping[int, Outcomes]) -> Forgetting:
    before = {key: float(value >= RIGHT) for key, value in courses[old].values.items()}
    after = {key: float(value >= RIGHT) for key, value in courses[new].values.items()}
    clusters = {**courses[old].clusters, **courses[new].clusters}
    lost = sorted(key for key in before.keys() & after.keys() if before[key] > after[key])
    gained = sum(before[key] < after[key] for key in before.keys() & after.keys())
    difference = paired_difference(after, before, clusters)
    p_value = exact_mcnemar(gained, len(lost)) if difference is None else difference.p_value
    one_sided = p_value / 2 if len(lost) > gained else 1.0
    return Forgetting(metric, old, new, len(lost), gained, len(before.keys() & after.keys()), one_sided, tuple(lost))
