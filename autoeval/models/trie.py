"""The token trie of many inputs, as the one walk that visits each of its nodes once.

Inputs in the order of their bytes are the depth-first walk of their trie: each begins with what it shares with the one
before, and only what follows is new. So the trie needs no nodes: an input, and how many tokens it shares, say it all.
Whoever walks keeps the keys and values of the path to where it stands, a stack, and writes over what it leaves.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Tokens = np.ndarray  # int32 [time]


def key_of(tokens: Sequence[int]) -> bytes:
    """``tokens`` as bytes: equal for equal tokens, and sorted with all that begin alike together."""
    return array("i", tokens).tobytes()


@dataclass(frozen=True)
class Segment:
    """``length`` new tokens of ``row``, of which the first is at position ``depth`` of it."""

    row: int
    depth: int
    length: int

    @property
    def end(self) -> int:
        return self.depth + self.length


class Walk:
    """The walk over ``keys`` (``key_of``, all different). Its tokens are counted from 0 to ``size``.

    ``rows``: the inputs in walking order, ``order``: their numbers in ``keys``, ``shared``: tokens each has in common
    with the one before, ``starts``: the number of each one's first own token.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.order = sorted(range(len(keys)), key=keys.__getitem__)
        self.rows: list[Tokens] = [np.frombuffer(keys[number], dtype=np.int32) for number in self.order]
        self.shared = [0] * min(1, len(keys)) + [_common(*pair) for pair in zip(self.rows, self.rows[1:], strict=False)]
        own = [len(row) - shared for row, shared in zip(self.rows, self.shared, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum(own)]).astype(np.int64)
        self.size = int(self.starts[-1])
        self.longest = max(map(len, self.rows), default=0)

    def places(self) -> Iterator[tuple[int, np.ndarray]]:
        """For each input, its number in ``keys`` and where in the walk each of its tokens is computed [time].

        The array is written over by the next step.
        """
        path = np.zeros(self.longest, dtype=np.int64)
        for place, number in enumerate(self.order):
            row = self.rows[place]
            path[self.shared[place] : len(row)] = np.arange(self.starts[place], self.starts[place + 1])
            yield number, path[: len(row)]

    def segments(self, first: int, last: int) -> list[Segment]:
        """The tokens ``first`` to ``last`` (excluded) of the walk."""
        found = []
        row = int(np.searchsorted(self.starts, first, side="right")) - 1
        while first < last:
            end = min(last, int(self.starts[row + 1]))
            if end > first:
                found.append(Segment(row, self.shared[row] + first - int(self.starts[row]), end - first))
            first, row = end, row + 1
        return found

    def path_to(self, first: int, most: int) -> Iterator[Segment]:
        """What lies above token ``first``, at most ``most`` tokens a piece: for a stack that has been lost."""
        (segment,) = self.segments(first, first + 1)
        for depth in range(0, segment.depth, most):
            yield Segment(segment.row, depth, min(most, segment.depth - depth))

    def tokens(self, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and positions of ``segments``, one after the other, int64 [tokens]."""
        ids = [self.rows[one.row][one.depth : one.end] for one in segments]
        positions = [np.arange(one.depth, one.end) for one in segments]
        return np.concatenate(ids).astype(np.int64), np.concatenate(positions)


def _common(one: Tokens, other: Tokens) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
