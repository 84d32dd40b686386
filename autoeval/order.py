"""Which of the waiting checkpoints is evaluated next, and which are given up when too many wait. Pure functions.

Checkpoints are told apart by their iteration. ``evaluated`` are the iterations that have scores or are about to have
them: the points that the curve is drawn through.

While evaluation is slower than training, ``newest-first`` and ``bisect`` evaluate the newest checkpoint next, so it is
never more than one evaluation (the one under way) away. ``oldest-first`` gives no such promise: the newest waits for
all before it, or for at most ``max_backlog - 1`` of them where that is set.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import Literal

Order = Literal["newest-first", "oldest-first", "bisect"]


def in_turn(order: Order, waiting: Iterable[int], evaluated: Iterable[int]) -> Iterator[int]:
    """``waiting`` in the order in which it is evaluated when nothing else becomes complete meanwhile."""
    left = set(waiting)
    if order != "bisect":
        yield from sorted(left, reverse=order == "newest-first")
        return
    known = sorted(set(evaluated) - left)  # an iteration that was saved again is no point of the curve any more
    while left:
        chosen = _halving(left, known)
        yield chosen
        left.remove(chosen)
        bisect.insort(known, chosen)


def given_up(order: Order, waiting: Iterable[int], evaluated: Iterable[int], max_backlog: int | None) -> list[int]:
    """Those beyond ``max_backlog`` (at least 1) whose turn would come last, never the newest; ascending."""
    left = set(waiting)
    if max_backlog is None or len(left) <= max_backlog:
        return []
    kept = {max(left)}
    for iteration in in_turn(order, left, evaluated):
        if len(kept) == max_backlog:
            break
        kept.add(iteration)
    return sorted(left - kept)


def _halving(waiting: set[int], known: list[int]) -> int:
    """The ends first (the newest, then the oldest), then what lies nearest the middle of the widest gap.

    ``known`` ascends and has nothing of ``waiting``. Of equal choices the later iteration: that is where the run is.
    """
    newest, oldest = max(waiting), min(waiting)
    if not known or newest > known[-1]:
        return newest
    if oldest < known[0]:
        return oldest

    def merit(iteration: int) -> tuple[int, int, int, int]:
        place = bisect.bisect(known, iteration)
        start, end = known[place - 1], known[place]
        return end - start, start, -abs(2 * iteration - start - end), iteration

    return max(waiting, key=merit)
