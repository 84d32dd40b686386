"""Tasks dealt out by what they cost, so that all parts end at about the same time and none loads a model for nothing.

Pure functions over plain values: the daemon deals out a checkpoint's tasks by the seconds that earlier checkpoints took,
``BalancedPartitioner`` a job's. Longest processing time first (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies",
1969): with k parts the longest is at most 4/3 - 1/(3k) times as long as in the best division.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import median
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def balanced(
    tasks: Sequence[T],
    seconds: Mapping[T, float],
    slots: int,
    *,
    load_seconds: float = 0.0,
    sizes: Mapping[T, float] | None = None,
) -> list[list[T]]:
    """At most ``slots`` parts, none empty, that together hold each task once; the longest part first.

    ``seconds``: what tasks took when they were run before, without loading the model; of the others it is estimated
    (``estimated``, by ``sizes``). ``load_seconds``: what each part spends before its first task. The number of parts
    makes wall seconds plus seconds of loading least, so a further part is opened only when it saves more than it costs to
    load. Where nothing was ever measured, sizes are no seconds and all slots are used. A part keeps the order of ``tasks``;
    the same input gives the same parts. Raises ``ValueError`` for tasks that are equal, or fewer than one slot.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}, expected at least 1")
    if len(set(tasks)) < len(tasks):
        raise ValueError("a task is there twice")
    if not tasks:
        return []
    cost = estimated(tasks, seconds, sizes)
    most = min(slots, len(tasks))
    if not any(_measured(seconds.get(task)) for task in tasks):
        return longest_first(tasks, cost, most)
    candidates = [longest_first(tasks, cost, parts) for parts in range(1, most + 1)]
    # The first of those that are equally good: fewer parts.
    return min(candidates, key=lambda parts: length(parts[0], cost) + load_seconds * len(parts))


def estimated(tasks: Sequence[T], seconds: Mapping[T, float], sizes: Mapping[T, float] | None = None) -> dict[T, float]:
    """Seconds of each task: as measured, else its size times the median of the measured ones' seconds by size, else
    (no size) the median of what was measured. Where nothing was measured: the size, else 1.

    Measured is what is finite and not below 0; sizes are of any unit, items times their weight, say.
    """
    sizes = sizes or {}
    known = {task: float(seconds[task]) for task in tasks if _measured(seconds.get(task))}
    sized = {task: float(sizes[task]) for task in tasks if _measured(sizes.get(task))}
    rate = median([known[task] / sized[task] for task in known if sized.get(task)] or [math.nan])
    usual = median(known.values()) if known else 1.0
    if not known:
        rate = 1.0
    guess = {task: sized[task] * rate if task in sized and math.isfinite(rate) else usual for task in tasks}
    return {task: known.get(task, guess[task]) for task in tasks}


def length(part: Sequence[T], cost: Mapping[T, float]) -> float:
    """Seconds of one part, without loading."""
    return math.fsum(cost[task] for task in part)


HALVINGS = 4  # of what is left: the last shares are a sixteenth of what a part does of the task


def factored(cost: float, parts: int, *, least: float, most: int) -> list[float]:
    """What shares of ``cost`` should cost, the largest first, when ``parts`` take them one by one, as they get done.

    In rounds, each of ``parts`` equal shares that are half of what is left: the first are large, since each has a beginning of its
    own, and the last are small, so that all end together also when some are slow (S. F. Hummel, E. Schonberg, L. E. Flynn,
    "Factoring: A Method for Scheduling Parallel Loops", 1992). None is below ``least``, unless ``cost`` is, and there are no
    more than ``most``.
    """
    sizes: list[float] = []
    left = cost
    for _ in range(HALVINGS):
        share = left / 2 / parts
        if share < least or len(sizes) + 2 * parts > most:
            break
        sizes += [share] * parts
        left -= share * parts
    count = max(1, min(parts, int(left // least) if least > 0 else parts, most - len(sizes)))
    return sizes + [left / count] * count


def _measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


def longest_first(tasks: Sequence[T], cost: Mapping[T, float], parts: int) -> list[list[T]]:
    """Exactly ``parts`` parts, at most as many as ``tasks``: the longest first, each to the part that has least to do; of equal
    ones, by their order. The longest part first; a part keeps the order of ``tasks``."""
    place = {task: index for index, task in enumerate(tasks)}
    dealt: list[list[T]] = [[] for _ in range(parts)]
    # By seconds, then by number of tasks: tasks that cost nothing are spread too, and no part stays empty.
    heap = [(0.0, 0, part) for part in range(parts)]
    for task in sorted(tasks, key=lambda one: (-cost[one], place[one])):
        total, count, part = heapq.heappop(heap)
        dealt[part].append(task)
        heapq.heappush(heap, (total + cost[task], count + 1, part))
    whole = [sorted(part, key=place.__getitem__) for part in dealt]
    return sorted(whole, key=lambda part: (-length(part, cost), place[part[0]]))
