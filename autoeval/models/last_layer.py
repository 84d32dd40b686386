"""The last layer for those tokens only whose hidden states are asked for.

What the tokens of a text give each other are keys and values. After the last layer's nobody looks at a token any more
unless its own hidden state is wanted: of a five-shot question that is one token. So the last layer is called twice. The
first call has all tokens and is left, by an exception, as soon as its attention has keys and values; the second one has
the wanted tokens, whose queries go over the keys and values of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values

# Queries, keys and values of the wanted tokens are computed twice: above this share of a pass little or nothing is left
# to save.
MOST = 0.5


class Kept(Exception):
    """The keys and values of all tokens are there: the way out of the first call."""


@dataclass
class Wanted:
    """``rows`` (ascending) of a pass's tokens, while the last layer is called: first for all of them, then for these."""

    rows: np.ndarray
    kept: dict[int, Pair] = field(default_factory=dict)  # of all tokens, by attention module
    first: bool = True

    def pair(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Of all tokens, in the second call. Raises ``Kept`` in the first one, with ``key`` and ``value`` kept."""
        if self.first:
            self.kept[id(module)] = key, value
            raise Kept
        return self.kept[id(module)]

    def within(self, start: int, length: int) -> tuple[slice, np.ndarray]:
        """Those among the ``length`` tokens from ``start`` on: which of the wanted they are, and their places there."""
        first, last = np.searchsorted(self.rows, [start, start + length]).tolist()
        return slice(first, last), self.rows[first:last] - start


class LastLayer:
    """The decoder layer whose attention was called last."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer = layer

    @contextmanager
    def only(self, state: Any, rows: np.ndarray) -> Iterator[None]:
        """Within it the layer computes ``rows`` (ascending, at least one) of the tokens of each call, and gives zeros for
        the others. ``state`` (``attention.State``) is told by its ``wanted``."""
        whole = self._layer.forward
        before = self._layer.__dict__.get("forward")

        def forward(*given: Any, **named: Any) -> Any:
            hidden = given[0] if given else named["hidden_states"]
            some = torch.from_numpy(rows).to(hidden.device)
            state.wanted = Wanted(rows)
            try:
                with suppress(Kept):  # which is gone after it, and with it what the first call has made
                    return whole(*given, **named)  # nobody asked our attention: it was computed for all
                state.wanted.first = False
                given, named = _selected((given, named), hidden.shape[1], some)
                made = whole(*given, **named)
            finally:
                state.wanted = None
            output = torch.zeros_like(hidden)
            output[:, some] = made
            return output

        self._layer.__dict__["forward"] = forward  # goes before its class's
        try:
            yield
        finally:
            del self._layer.__dict__["forward"]
            if before is not None:
                self._layer.__dict__["forward"] = before


def last_layer_of(decoder: torch.nn.Module, attention: int) -> LastLayer | None:
    """The last of ``decoder``'s layers, if the module whose ``id`` is ``attention`` is in it."""
    for module in decoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module):
            last = module[-1]
            if any(id(inner) == attention for inner in last.modules()):
                return LastLayer(last)
    return None


def _selected(value: Any, tokens: int, rows: torch.Tensor) -> Any:
    """``value`` with every tensor [1, tokens, …] or [tokens] in it reduced to ``rows``."""
    if isinstance(value, dict):
        return {name: _selected(one, tokens, rows) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_selected(one, tokens, rows) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim == 1 and len(value) == tokens:
        return value[rows.to(value.device)]
    if value.ndim > 1 and value.shape[:2] == (1, tokens):
        return value[:, rows.to(value.device)]
    return value
