"""All pairs of vectors that are similar enough, exactly, without the matrix of all similarities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy

BLOCK = 2048  # rows and columns of the products: 16 MB each
MARGIN = 1e-4  # float32 products are looked at again in float64 when this near the threshold


class Pairs(NamedTuple):
    """``first`` < ``second`` are places, ``similarity`` cosines, all of shape (pairs,), by falling similarity.

    ``total`` counts all that were found, of which only the most similar are kept.
    """

    first: numpy.ndarray
    second: numpy.ndarray
    similarity: numpy.ndarray
    total: int


def similar_pairs(
    vectors: numpy.ndarray,
    groups: numpy.ndarray,
    threshold: float,
    *,
    most: int,
    progress: Callable[[int], object] = lambda blocks: None,
    block: int = BLOCK,
) -> Pairs:
    """Pairs in different ``groups`` with a cosine of at least ``threshold``.

    ``vectors`` are unit vectors (n, dimensions), float32; ``groups`` integers (n,). Memory is that of a few blocks and
    of ``most`` pairs, whatever n is. ``progress`` is called with 1 for each of ``blocks(n)`` blocks.
    """
    first = second = numpy.empty(0, dtype=numpy.int64)
    similarity = numpy.empty(0)
    total = 0
    for a, b in _blocks(len(vectors), block):
        i, j = _candidates(vectors, groups, a, b, block, threshold)
        exact = _cosines(vectors, i, j)
        enough = exact >= threshold
        total += int(enough.sum())
        first = numpy.concatenate([first, i[enough]])
        second = numpy.concatenate([second, j[enough]])
        similarity = numpy.concatenate([similarity, exact[enough]])
        if len(first) > 2 * most:
            first, second, similarity = _best(first, second, similarity, most)
        progress(1)
    return Pairs(*_best(first, second, similarity, most), total)


def blocks(count: int, block: int = BLOCK) -> int:
    """How many products ``similar_pairs`` takes for ``count`` vectors."""
    across = -(-count // block)
    return across * (across + 1) // 2


def _blocks(count: int, block: int) -> Iterator[tuple[int, int]]:
    for a in range(0, count, block):
        for b in range(a, count, block):
            yield a, b


def _candidates(
    vectors: numpy.ndarray, groups: numpy.ndarray, a: int, b: int, block: int, threshold: float
) -> tuple[numpy.ndarray, numpy.ndarray]:
    near = vectors[a : a + block] @ vectors[b : b + block].T >= threshold - MARGIN
    if near.mean() > 0.01:  # many alike: those of the same group would take more room than the block
        near &= groups[a : a + block, None] != groups[None, b : b + block]
    i, j = numpy.nonzero(near)
    i, j = i + a, j + b
    wanted = (groups[i] != groups[j]) & (i < j)
    return i[wanted], j[wanted]


def _cosines(vectors: numpy.ndarray, i: numpy.ndarray, j: numpy.ndarray, part: int = 65536) -> numpy.ndarray:
    """In float64, a part at a time."""
    found = numpy.empty(len(i))
    for start in range(0, len(i), part):
        here = slice(start, start + part)
        left, right = vectors[i[here]].astype(numpy.float64), vectors[j[here]].astype(numpy.float64)
        found[here] = numpy.einsum("ij,ij->i", left, right)
    return found


def _best(
    first: numpy.ndarray, second: numpy.ndarray, similarity: numpy.ndarray, most: int
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """The ``most`` similar, by falling similarity, then by place."""
    order = numpy.lexsort((second, first, -similarity))[:most]
    return first[order], second[order], similarity[order]
