"""Who sees whom, as what is added to attention's scores: 0 or -inf, as PyTorch would make of bools in every layer again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Masks:
    """Of one pass: what a layer has made serves those after it."""

    def __init__(self) -> None:
        self._made: dict[Any, torch.Tensor] = {}

    def triangle(
        self, number: int, above: int, length: int, window: int | None, groups: int, query: torch.Tensor
    ) -> torch.Tensor | None:
        """Which of ``above`` + ``length`` tokens each of the last ``length`` sees; none where all, or just causal.

        ``number`` of the segment; ``groups``: queries of a key, stacked.
        """
        if window is not None and above + length <= window:
            window = None
        if window is None and (length == 1 or (above == 0 and groups == 1)):
            return None
        key = (number, window, groups, query.device, query.dtype)
        mask = self._made.get(key)
        if mask is None:
            mask = query.new_full((length, above + length), -torch.inf).triu(above + 1)
            if window is not None:
                hidden = torch.ones(mask.shape, dtype=torch.bool, device=query.device).tril(above - window)
                mask.masked_fill_(hidden, -torch.inf)
            mask = self._made[key] = mask.repeat(groups, 1) if groups > 1 else mask
        return mask

    def grown(self, room: int, lengths: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What the newest token of each text in ``room`` sees: [texts, 1, 1, longest]."""
        key = ("room", room, window, lengths.device, dtype)
        mask = self._made.get(key)
        if mask is None:
            places = torch.arange(int(lengths.max()) + 1, device=lengths.device)[None]
            hidden = places > lengths[:, None]
            if window is not None:
                hidden |= places <= lengths[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill_(hidden, -torch.inf)
            mask = self._made[key] = mask[:, None, None]
        return mask


def some_rows(
    places: np.ndarray, low: int, window: int | None, groups: int, query: torch.Tensor
) -> torch.Tensor | None:
    """What the tokens at ``places`` (ascending) of a path see of those from ``low`` to the last of them; none where all."""
    if len(places) == 1:
        return None
    own = torch.from_numpy(places).to(query.device)[:, None]
    others = torch.arange(low, int(places[-1]) + 1, device=query.device)[None]
    hidden = others > own
    if window is not None:
        hidden |= others <= own - window
    mask = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return mask.repeat(groups, 1) if groups > 1 else mask
