"""All segments of a pass in one call of attention, for devices on which a call costs more than its arithmetic.

The tokens of a pass are a stretch of the depth-first walk of a trie, so who sees whom needs no matrix of ancestors. A
token is on the path from the place where it is computed until a later segment writes over its position: it is seen by
the tokens numbered ``born`` to ``until`` (excluded) of the pass. The path that was there before the pass is born at 0.
``flex_attention`` takes this rule as it is, and leaves out the blocks of keys that nobody sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

BLOCK = 128  # of flex_attention, in both directions; lengths are rounded up to it, so that few of them are compiled


class Packed:
    """What the tokens of one pass see. ``segments``: (start, depth, length) of each, in walking order from start 0.

    Keys are the ``old`` tokens of the path that is there, then those of the pass. ``born``, ``until`` and ``places``
    (positions in their texts) are of all keys; ``paths[i]``: the keys that are the path at the end of segment i, of
    those asked for in ``kept``; ``final``: of the last one.
    """

    def __init__(self, segments: Sequence[tuple[int, int, int]], kept: frozenset[int] = frozenset()) -> None:
        self.old = segments[0][1]
        self.tokens = sum(length for _, _, length in segments)
        whole = self.old + self.tokens
        self.born = np.concatenate([np.zeros(self.old, dtype=np.int64), np.arange(self.tokens)])
        self.until = np.full(whole, self.tokens, dtype=np.int64)
        self.places = np.arange(whole, dtype=np.int64)
        self.paths: dict[int, np.ndarray] = {}
        path = np.arange(self.old)
        for number, (start, depth, length) in enumerate(segments):
            self.until[path[depth:]] = start
            own = self.old + np.arange(start, start + length)
            self.places[own] = np.arange(depth, depth + length)
            path = np.concatenate([path[:depth], own])
            if number in kept:
                self.paths[number] = path
        self.final = path
        self._masks: dict[Any, Any] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """``query`` [1, heads, tokens, d] on ``key`` and ``value`` [1, key heads, old + tokens, d] -> as ``query``."""
        rows, columns = _up(self.tokens), _up(self.old + self.tokens)
        query = torch.nn.functional.pad(query, (0, 0, 0, rows - self.tokens))
        key, value = (torch.nn.functional.pad(one, (0, 0, 0, columns - one.shape[2])) for one in (key, value))
        capped = None if softcap is None else _capped(softcap)
        shared = query.shape[1] != key.shape[1]
        mask = self.mask(window, query.device)
        seen = _flex(query.device.type)(
            query, key, value, score_mod=capped, block_mask=mask, scale=scaling, enable_gqa=shared
        )
        return seen[:, :, : self.tokens]

    def mask(self, window: int | None, device: torch.device) -> Any:
        """The rule as flex_attention's ``BlockMask``."""
        found = self._masks.get((window, device))
        if found is None:
            found = self._masks[window, device] = self._mask(window, device)
        return found

    def _mask(self, window: int | None, device: torch.device) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        rows, columns = _up(self.tokens), _up(self.old + self.tokens)
        spare = columns - self.old - self.tokens  # keys that nobody sees

        def there(values: np.ndarray, padded: int) -> torch.Tensor:
            return torch.from_numpy(np.pad(values, (0, padded))).to(device=device, dtype=torch.int32)

        born, until, places = (there(values, spare) for values in (self.born, self.until, self.places))
        own = there(self.places[self.old :], rows - self.tokens)

        def sees(batch: Any, head: Any, q: Any, k: Any) -> Any:
            seen = (born[k] <= q) & (q < until[k])
            return seen if window is None else seen & (own[q] - places[k] < window)

        blocks = self.blocks()
        count = torch.from_numpy(blocks.sum(axis=1))
        order = torch.from_numpy(np.argsort(~blocks, axis=1, kind="stable"))
        count, order = (one[None, None].to(device=device, dtype=torch.int32) for one in (count, order))
        return BlockMask.from_kv_blocks(count, order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(rows, columns))

    def blocks(self) -> np.ndarray:
        """Which blocks of queries see something in which blocks of keys, windows apart: bool [query, key blocks]."""
        rows, columns = _up(self.tokens) // BLOCK, _up(self.old + self.tokens) // BLOCK
        change = np.zeros((rows + 1, columns), dtype=np.int64)
        ever = np.flatnonzero(self.until > self.born)
        np.add.at(change, (self.born[ever] // BLOCK, ever // BLOCK), 1)
        np.add.at(change, ((self.until[ever] - 1) // BLOCK + 1, ever // BLOCK), -1)
        return change.cumsum(axis=0)[:-1] > 0


def _up(length: int) -> int:
    """To whole blocks."""
    return -(-length // BLOCK) * BLOCK


@cache
def _capped(softcap: float) -> Callable[..., Any]:
    """Kept, because what flex_attention has compiled goes by the function."""

    def cap(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
        return torch.tanh(score / softcap) * softcap

    return cap


@cache
def _flex(device: str) -> Callable[..., Any]:
    """Compiled where it is for speed; elsewhere it holds all scores at once, for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    function: Any = flex_attention
    return torch.compile(function, dynamic=True) if device == "cuda" else function
