"""Attention over the path of a token trie, and over the texts of a batch that grow by one token each.

All tokens of one forward pass lie in one row, without padding: for every layer but attention it does not matter what
belongs together. Transformers calls the attention function that the configuration names; while a ``State`` is in
charge (``attending``) it is ``_attend`` here, which knows the segments. A segment sees the path above it and itself,
so no work is done on what is masked out, but for the triangle of a segment itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from autoeval.models.kernels import attention, attention_and_total
from autoeval.models.last_layer import Pair, Wanted
from autoeval.models.masks import Masks, some_rows
from autoeval.models.packed import Packed
from autoeval.models.stems import Stem

NAME = "autoeval_path"

# What models hand to their attention function and what changes nothing here.
_HARMLESS = {
    "dropout",
    "is_causal",
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "past_key_values",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "num_items_in_batch",
    "layer_idx",
}


class Unsupported(ValueError):
    """An attention that this module does not compute (sinks, biases, masks of its own)."""


@dataclass(frozen=True)
class Slot:
    """Slot ``number`` of ``room`` tokens; it has what follows the first ``stem.length`` tokens, which the stem has."""

    room: int
    number: int
    stem: Stem | None = None


@dataclass(frozen=True)
class Part:
    """``length`` tokens of a pass from ``start`` on, at positions ``depth`` and following of the path.

    ``slots``: where the path is kept once they are computed, at the end of a prompt.
    """

    start: int
    depth: int
    length: int
    slots: tuple[Slot, ...] = ()


@dataclass
class _Layer:
    """Keys and values of one layer: ``path`` [1, heads, time, d], by room ``slots`` [slots, heads, room, d], and by
    number ``stems`` [1, heads, length, d].
    """

    path: Pair
    slots: dict[int, Pair]
    stems: dict[int, Pair] = field(default_factory=dict)

    def keep(self, slot: Slot, end: int, whole: Pair | None = None) -> None:
        """The path of ``end`` tokens (or ``whole``, another one) goes to ``slot``, and its stem is kept if this is its
        first text."""
        pair = self.path if whole is None else whole
        above = 0
        if slot.stem is not None:
            above = slot.stem.length
            if slot.stem.number not in self.stems:
                keys, values = (path[:, :, :above].clone() for path in pair)
                self.stems[slot.stem.number] = keys, values
        for kept, path in zip(self.slots[slot.room], pair, strict=True):
            kept[slot.number, :, : end - above] = path[0, :, above:end]


@dataclass
class State:
    """Keys and values of all layers, and what the current pass consists of.

    ``capacity``: tokens of the longest path. ``slots``: how many texts of at most so many tokens grow at once, by that
    room (empty where only scores are asked). ``packed``: all parts in one call (``packed.py``) instead of one each.
    """

    capacity: int
    slots: dict[int, int] = field(default_factory=dict)
    packed: bool = False
    layers: dict[int, _Layer] = field(default_factory=dict)
    windows: list[int | None] = field(default_factory=list)  # of the layers, in the order of their first call
    parts: Sequence[Part] = ()
    growing: Sequence[tuple[int, torch.Tensor]] = ()
    stemmed: Sequence[tuple[int, torch.Tensor]] = ()
    wanted: Wanted | None = None  # while the last layer is called for some tokens only
    _masks: Masks = field(default_factory=Masks)
    _plan: Packed | None = None

    def begin(
        self,
        parts: Sequence[Part],
        growing: Sequence[tuple[int, torch.Tensor]] = (),
        stemmed: Sequence[tuple[int, torch.Tensor]] = (),
    ) -> None:
        """Say what the next pass computes: ``parts``, then one token for each of the first texts of each room.

        ``growing``: (room, tokens in the slots of its texts, without the newest one [texts]). ``stemmed``: (number of a
        stem, which of the growing texts have it [texts], ascending).
        """
        self.parts, self.growing, self.stemmed = parts, growing, stemmed
        self._masks = Masks()
        self._plan = None
        if self.packed and parts:
            ends = frozenset(number for number, part in enumerate(parts) if part.slots)
            self._plan = Packed([(part.start, part.depth, part.length) for part in parts], ends)

    def drop(self, stem: int) -> None:
        """No text will ask for ``stem`` any more."""
        for layer in self.layers.values():
            layer.stems.pop(stem, None)

    def move(self, room: int, source: int, target: int, length: int) -> None:
        """The ``length`` tokens in slot ``source`` are from now on in ``target``."""
        for layer in self.layers.values():
            for values in layer.slots[room]:
                values[target, :, :length] = values[source, :, :length]

    def bytes_per_token(self) -> int:
        """Of keys and values, in all layers."""
        both = [values for layer in self.layers.values() for values in layer.path]
        return sum(values.shape[1] * values.shape[3] * values.element_size() for values in both)

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """``query`` [1, heads, tokens, d], ``key`` and ``value`` [1, key heads, tokens, d] -> [1, tokens, heads, d]."""
        if self.wanted is not None:
            key, value = self.wanted.pair(module, key, value)
        layer = self._layer(module, key, value, window)
        output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        if self._plan is not None:
            self._attend_packed(self._plan, layer, query, key, value, output, (scaling, window, softcap))
        for number, part in enumerate(self.parts if self._plan is None else ()):
            new, end = slice(part.start, part.start + part.length), part.depth + part.length
            for path, given in zip(layer.path, (key, value), strict=True):
                path[:, :, part.depth : end] = given[:, :, new]
            here, low, high, mask = self._view(number, part, window, query, query.shape[1] // key.shape[1])
            if here.stop > here.start:
                keys, values = (path[:, :, low:high] for path in layer.path)
                seen = attention(query[:, :, here], keys, values, mask, scaling, softcap, causal=not part.depth)
                output[:, here] = seen.transpose(1, 2)
            for slot in part.slots:
                layer.keep(slot, end)
        if self.growing:
            many = sum(len(lengths) for _, lengths in self.growing)
            query, key, value = (one[:, :, -many:] for one in (query, key, value))
            self._attend_growing(layer, query, key, value, output[:, -many:], scaling, window, softcap)
        return output

    def _view(
        self, number: int, part: Part, window: int | None, query: torch.Tensor, groups: int
    ) -> tuple[slice, int, int, torch.Tensor | None]:
        """Which queries are of ``part``, the first and last (excluded) token of the path that they see, and their mask."""
        if self.wanted is None:
            low = 0 if window is None else max(0, part.depth - window + 1)
            mask = self._masks.triangle(number, part.depth - low, part.length, window, groups, query)
            return slice(part.start, part.start + part.length), low, part.depth + part.length, mask
        here, places = self.wanted.within(part.start, part.length)
        if not len(places):
            return here, 0, 0, None
        places += part.depth
        low = 0 if window is None else max(0, int(places[0]) - window + 1)
        return here, low, int(places[-1]) + 1, some_rows(places, low, window, groups, query)

    def _attend_packed(
        self,
        plan: Packed,
        layer: _Layer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        options: tuple[float | None, int | None, float | None],
    ) -> None:
        """All parts at once into ``output``, then what they leave: slots, and the path."""
        key, value = (one[:, :, : plan.tokens] for one in (key, value))
        keys, values = (
            torch.cat([path[:, :, : plan.old], new], dim=2) for path, new in zip(layer.path, (key, value), strict=True)
        )
        scaling, window, softcap = options
        if self.wanted is None:
            seen = plan.attend(query[:, :, : plan.tokens], keys, values, window, scaling, softcap)
            output[:, : plan.tokens] = seen.transpose(1, 2)
        else:  # the plan is of all tokens
            here, places = self.wanted.within(0, plan.tokens)
            there = torch.from_numpy(places).to(query.device)
            spread = query.new_zeros((*query.shape[:2], plan.tokens, query.shape[3]))
            spread[:, :, there] = query[:, :, here]
            seen = plan.attend(spread, keys, values, window, scaling, softcap)
            output[:, here] = seen[:, :, there].transpose(1, 2)
        for number, part in enumerate(self.parts):
            if part.slots:
                there = torch.from_numpy(plan.paths[number]).to(keys.device)
                whole = keys[:, :, there], values[:, :, there]
                for slot in part.slots:
                    layer.keep(slot, part.depth + part.length, whole)
        low = int((plan.final < plan.old).sum())  # above it the path is as it was
        there = torch.from_numpy(plan.final[low:]).to(keys.device)
        for path, both in zip(layer.path, (keys, values), strict=True):
            path[:, :, low : len(plan.final)] = both[:, :, there]

    def _attend_growing(
        self,
        layer: _Layer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> None:
        """The newest tokens of the growing texts: on their slots, then joined with what their stems give."""
        start = 0
        totals = []
        for room, given in self.growing:
            lengths = given.to(query.device)  # of the layer: a model may lie on several devices
            here, start = slice(start, start + len(lengths)), start + len(lengths)
            query_, key_, value_ = (one[0, :, here].transpose(0, 1)[:, :, None] for one in (query, key, value))
            for kept, new in zip(layer.slots[room], (key_, value_), strict=True):
                kept[torch.arange(len(lengths), device=kept.device), :, lengths] = new[:, :, 0]
            mask = self._masks.grown(room, lengths, window, query.dtype)
            keys, values = (kept[: len(lengths), :, : mask.shape[-1]] for kept in layer.slots[room])
            if not self.stemmed:
                output[0, here] = attention(query_, keys, values, mask, scaling, softcap)[:, :, 0]
                continue
            own, total = attention_and_total(query_, keys, values, mask, scaling, softcap)
            output[0, here] = own[:, :, 0]
            totals.append(total[:, :, 0])
        if not self.stemmed:
            return
        log_total = torch.cat(totals)  # [texts, heads]
        for stem, given in self.stemmed:
            texts = given.to(query.device)
            seen, above = attention_and_total(query[:, :, texts], *layer.stems[stem], None, scaling, softcap)
            share = torch.sigmoid(above[0].T - log_total[texts])[:, :, None].to(output.dtype)
            output[0, texts] = torch.lerp(output[0, texts], seen[0].transpose(0, 1), share)

    def _layer(self, module: Any, key: torch.Tensor, value: torch.Tensor, window: int | None) -> _Layer:
        layer = self.layers.get(id(module))
        if layer is None:

            def space(like: torch.Tensor, count: int, time: int) -> torch.Tensor:
                # Zeros: what is masked out is multiplied by 0, and 0 times an uninitialised NaN is NaN.
                return like.new_zeros((count, like.shape[1], time, like.shape[3]))

            path = (space(key, 1, self.capacity), space(value, 1, self.capacity))
            slots = {room: (space(key, many, room), space(value, many, room)) for room, many in self.slots.items()}
            layer = self.layers[id(module)] = _Layer(path, slots)
            self.windows.append(window)
        return layer


_STATE: ContextVar[State | None] = ContextVar("autoeval_attention_state", default=None)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls."""
    state = _STATE.get()
    strange = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if state is None or attention_mask is not None or strange or query.shape[0] != 1:
        raise Unsupported(f"its attention has {', '.join(strange) or 'a mask of its own'}")
    return state.attend(module, query, key, value, scaling, sliding_window, softcap), None


@contextmanager
def attending(configs: Sequence[Any], state: State) -> Iterator[None]:
    """Within it the models of ``configs`` attend as ``state`` says; afterwards as before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    before = [config._attn_implementation for config in configs]
    token = _STATE.set(state)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _STATE.reset(token)
