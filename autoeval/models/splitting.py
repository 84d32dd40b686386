"""The requests of a call in parts for several processes, along the trie: what begins alike stays together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoeval.models.requests import LoglikelihoodRequest
from autoeval.models.trie import Walk, key_of


def split(requests: Sequence[Any], count: int, *, prefix: int | None, window: int) -> tuple[list[list[int]], int]:
    """The numbers of ``requests`` (of one kind) in at most ``count`` parts of like cost, and the trie's unique tokens.

    A part is a stretch of the depth-first walk, so whole subtrees. A cut costs what the inputs on its two sides share,
    because both parts compute it, and the distance from where the parts would be of one size: both are tokens, and
    their sum is the least. ``prefix`` stands for an empty context; ``window``: tokens that the model sees at most.
    """
    members: dict[bytes, list[int]] = {}
    for number, request in enumerate(requests):
        members.setdefault(key_of(_input(request, prefix, window)), []).append(number)
    walk = Walk(list(members))
    numbers = [list(members.values())[place] for place in walk.order]
    grown = [sum(getattr(requests[one], "max_new_tokens", 0) for one in same) for same in numbers]
    starts = walk.starts + np.concatenate([[0], np.cumsum(grown)]).astype(np.int64)
    cuts = stretches(starts, np.asarray(walk.shared, dtype=np.int64), [part / count for part in range(1, count)])
    ends = [*cuts[1:], len(numbers)]
    parts = [sorted(one for same in numbers[start:end] for one in same) for start, end in zip(cuts, ends, strict=True)]
    return [part for part in parts if part], walk.size


def stretches(starts: np.ndarray, shared: np.ndarray, at: Sequence[float]) -> list[int]:
    """Where the stretches of a walk begin, the first at 0. ``starts`` [inputs + 1]: what comes before each input and in
    all; ``shared`` [inputs]: what each has in common with the one before; ``at``: where cuts would be best, as shares of
    all, ascending. With fewer inputs than stretches there are as many as inputs."""
    cuts = [0]
    for number, best in enumerate(at):
        first = cuts[-1] + 1
        if first >= len(shared):
            break
        last = max(first + 1, len(shared) - (len(at) - number - 1))  # each of those that follow needs an input
        cost = shared[first:last] + np.abs(starts[first:last] - starts[-1] * best)
        cuts.append(first + int(cost.argmin()))
    return cuts


def _input(request: Any, prefix: int | None, window: int) -> Sequence[int]:
    """What the model will read of ``request``, cut as it cuts it."""
    alone = () if prefix is None else (prefix,)
    if isinstance(request, LoglikelihoodRequest):
        if not request.continuation:
            return ()
        return ((request.context or alone) + request.continuation[:-1])[-window:]
    prompt = tuple(request.prompt) or alone
    return prompt[-max(1, window - request.max_new_tokens) :]
