"""The transformer without its output projection, and the projection by itself.

Logits are vocabulary-sized: in a small model computing them where nobody asks costs more than all layers together. So
the body gives hidden states and the head is applied to the few rows that are asked for.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from autoeval.models.attention import Part, State, Unsupported, attending
from autoeval.models.last_layer import MOST, LastLayer, last_layer_of

logger = logging.getLogger(__name__)

HEAD_ELEMENTS = 16 * 1024 * 1024  # logits in one piece (64 MB in fp32)


@dataclass(frozen=True)
class Shape:
    """Widths in elements: the residual stream, queries, keys and values together, the widest product of a layer.

    ``item``: bytes of an element, ``cache_bytes``: keys and values of one token in all layers, ``groups``: queries of a
    key, ``capped``: heads whose scores are held all at once because a soft cap goes over them (0: no cap).
    """

    hidden: int
    attention: int
    widest: int
    item: int
    cache_bytes: int
    groups: int = 1
    capped: int = 0


class Network:
    """``body`` -> hidden states, ``head`` -> raw logits in fp32.

    Some architectures do more to logits than one matrix product (soft-capping, scaling). At construction the parts are
    compared with the whole model on a few tokens; where they differ, ``head`` is exact by asking the whole model. Then
    it is tried whether the model can walk a token trie (``shares``); where it cannot, the log says why.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.devices = _devices_of(model)
        self.device = self.devices[0]  # where tokens go in, and hidden states come out
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.projection = model.get_output_embeddings()
        self.finish: Callable[[torch.Tensor], torch.Tensor] = _as_it_is
        self._decoder = model.get_decoder()
        accepted = inspect.signature(self._decoder.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.split = self._decoder is not model and self._parts_make_the_whole()
        self.caches = self._has_cache()
        if not self.caches:
            logger.warning("%s keeps no key-value cache: generation computes every text anew", type(model).__name__)
        if not self.split:
            logger.info("%s: its logits are not one projection of its hidden states; all are computed", type(model))
        self._configs = _attention_configs(self._decoder)
        self.switches_rope = _switches_rope(model.config)
        self.shape = shape_of(model.config.get_text_config(), self.model.dtype.itemsize)
        self.windows: tuple[int | None, ...] = ()  # how far its layers look back, where it walks
        self.packed = False
        self._last: LastLayer | None = None
        why = self._why_not_shared()
        if why is None and self.device.type == "cuda":
            self._try_packed()
        self.shares = why is None
        name = type(model).__name__
        if why is None and (all_of_it := self._why_all_of_the_last_layer()) is not None:
            self._last = None
            logger.debug("%s: its last layer is computed for every token: %s", name, all_of_it)
        if why is not None:
            logger.warning("%s: prefixes are computed again for every request, in plain batches: %s", name, why)

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``input_ids`` [batch, time], padded on the right -> [batch, time, d] for ``logits``.

        No mask is needed: a causal model never looks to the right, and positions count from the left.
        """
        if not self.split:
            return self.model(input_ids=input_ids, use_cache=False).logits.to(self.device)
        return self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state.to(self.device)

    def walk(
        self, input_ids: torch.Tensor, positions: torch.Tensor, state: State, wanted: np.ndarray | None = None
    ) -> torch.Tensor:
        """One pass over a trie: ``input_ids`` and ``positions`` [tokens], as ``state`` has been told -> hidden states
        [wanted, d] of the tokens ``wanted`` (ascending; none: all), and where these are few, the last layer of them only.
        """
        wanted = np.arange(len(input_ids)) if wanted is None else wanted
        some: Any = nullcontext()
        if self._last is not None and len(wanted) <= MOST * len(input_ids):
            # At least one: its attention writes down what later passes see.
            some = self._last.only(state, wanted if len(wanted) else np.array([len(input_ids) - 1]))
        with attending(self._configs, state), some:
            output = self._decoder(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        hidden = output.last_hidden_state[0].to(self.device)
        return hidden if len(wanted) == len(hidden) else hidden[self.place(wanted)]

    def place(self, values: np.ndarray) -> torch.Tensor:
        """``values`` on the model's device; to a GPU through pinned memory, so that nobody waits for the copy."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # PyTorch's allocator keeps a pinned buffer until the copies from it are done.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def step(
        self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """One pass with a key-value cache: ``input_ids`` [batch, new], ``mask`` [batch, cached + new].

        Returns raw logits [batch, vocabulary] (fp32) after the last token, and the cache.
        """
        extra = {"position_ids": positions} if self.takes_positions else {}
        part = self._decoder if self.split else self.model
        output = part(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        last = output.last_hidden_state[:, -1] if self.split else output.logits[:, -1]
        return self.logits(last.to(self.device)), output.past_key_values

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` [rows, d] as ``hidden()`` gave it -> raw logits [rows, vocabulary] in fp32."""
        return (self.finish(self.projection(self.to_head(hidden))) if self.split else hidden).float().to(self.device)

    def to_head(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` on the device of the output projection; where its weights are elsewhere until it is called, accelerate
        moves what it is given."""
        weight = getattr(self.projection, "weight", None)
        return values if weight is None or weight.device.type == "meta" else values.to(weight.device)

    def rows_at_once(self) -> int:
        """Rows whose logits are held together."""
        return max(1, HEAD_ELEMENTS // self.vocab_size)

    @torch.inference_mode()
    def _has_cache(self) -> bool:
        """Whether it answers with a cache whose rows can be selected (state-space models do not)."""
        probe = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        cache = getattr(self.model(input_ids=probe, use_cache=True), "past_key_values", None)
        return hasattr(cache, "batch_select_indices")

    @torch.inference_mode()
    def _parts_make_the_whole(self) -> bool:
        probe = torch.arange(min(8, self.vocab_size), device=self.device)[None]
        whole = self.model(input_ids=probe, use_cache=False).logits.float()
        hidden = self.to_head(self._decoder(input_ids=probe, use_cache=False).last_hidden_state)
        if hidden.shape[-1] != getattr(self.projection, "in_features", hidden.shape[-1]):
            return False
        projected = self.projection(hidden)
        for finish in _finishes(self.model.config.get_text_config()):
            self.finish = finish
            parts = finish(projected).float().to(whole.device)
            if parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-4):
                return True
        return False

    def _try_packed(self) -> None:
        """All segments of a pass in one call of attention, where that gives what plain rows give."""
        self.packed = True
        try:
            why = self._why_not_shared()
        except Exception as error:  # of a compiler: whatever it is, there is another way
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            self.packed = False
            logger.warning("%s: one call of attention a segment: %s", type(self.model).__name__, why)

    @torch.inference_mode()
    def _why_not_shared(self) -> str | None:
        """Why this model cannot walk a trie, from its configuration and from a small trie that it walks; else none."""
        if not self.split:
            return "its logits are not one projection of its hidden states"
        if not self.takes_positions or not self._configs:
            return (
                "its layers take no positions and attend by code of their own (with ALiBi by a bias that they make from "
                "the length of the row), so tokens of several texts cannot lie in one row"
            )
        if self.switches_rope:
            return "its rotary embedding depends on the length of the whole text (longrope)"
        state = State(capacity=7, packed=self.packed)
        state.begin([Part(0, 0, 7), Part(7, 4, 2), Part(9, 3, 2)])
        rows = self._few_rows()
        tokens = torch.tensor([*rows[0], *rows[1][4:], *rows[2][3:]], device=self.device)
        positions = torch.tensor([*range(7), 4, 5, 3, 4], device=self.device)
        try:
            walked = self.walk(tokens, positions, state)
        except (Unsupported, TypeError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            return str(error) or type(error).__name__
        if not state.layers or len(state.layers) != len(state.windows):
            return "its attention is computed by itself and not by the function that its configuration names"
        if (wanted := _windows_of(self.model.config.get_text_config(), len(state.windows))) != state.windows:
            return f"its layers attend within {state.windows}, its configuration says {wanted}"
        self.windows = tuple(state.windows)
        self.shape = replace(self.shape, cache_bytes=state.bytes_per_token())
        places = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8], [0, 1, 2, 9, 10])
        if not all(self._is_plain(walked[here], row) for row, here in zip(rows, places, strict=True)):
            return "a small trie gave other hidden states than plain rows"
        self._attention = list(state.layers)[-1]
        return None

    @torch.inference_mode()
    def _why_all_of_the_last_layer(self) -> str | None:
        """Why the last layer cannot be computed for some tokens only, from two passes of which some are asked for."""
        if getattr(self.model, "hf_device_map", None) is not None:
            return "its layers lie on several devices"
        self._last = last_layer_of(self._decoder, self._attention)
        if self._last is None:
            return "the attention called last is in no list of layers"
        rows = self._few_rows()
        state = State(capacity=7, packed=self.packed)
        state.begin([Part(0, 0, 7)])
        try:
            first = self.walk(*self._numbered(rows[0], 0), state, np.array([1, 3, 6]))
            state.begin([Part(0, 4, 2), Part(2, 3, 2)])
            ids, places = zip(self._numbered(rows[1], 4), self._numbered(rows[2], 3), strict=True)
            then = self.walk(torch.cat(ids), torch.cat(places), state, np.array([1, 3]))
        except Exception as error:  # whatever it is, there is another way
            return str(error) or type(error).__name__
        checks = [(first, rows[0], [1, 3, 6]), (then[:1], rows[1], [5]), (then[1:], rows[2], [4])]
        if not all(self._is_plain(found, row, here) for found, row, here in checks):
            return "some tokens of a small trie had other hidden states than in plain rows"
        return None

    def _few_rows(self) -> list[list[int]]:
        """Three texts that begin alike, for a trial."""
        texts = ((3, 1, 4, 1, 5, 9, 2), (3, 1, 4, 1, 6, 5), (3, 1, 4, 2, 7))
        return [[one % self.vocab_size for one in text] for text in texts]

    def _numbered(self, row: Sequence[int], first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and positions of ``row`` from its token ``first`` on."""
        ids = torch.tensor(row[first:], device=self.device)
        return ids, torch.arange(first, len(row), device=self.device)

    def _is_plain(self, found: torch.Tensor, row: Sequence[int], places: Sequence[int] | None = None) -> bool:
        """Whether ``found`` are the hidden states of ``row`` by itself (at ``places``)."""
        plain = self.hidden(torch.tensor([row], device=self.device))[0].float()
        exact = (1e-4 if found.dtype == torch.float32 else 5e-2) * float(plain.abs().max())
        here = plain if places is None else plain[list(places)]
        return torch.allclose(found.float(), here, rtol=0, atol=exact)


def _devices_of(model: Any) -> list[torch.device]:
    """Where ``model`` computes, the embedding's device first. Layers that wait on the CPU or a disk are moved to a GPU
    to compute, where there is one (accelerate)."""
    laid = getattr(model, "hf_device_map", None)
    if laid is None:
        return [next(model.parameters()).device]
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    hooks = [hook, *(getattr(module, "_hf_hook", None) for module in model.modules())]
    named = [getattr(one, "execution_device", None) for one in hooks]
    placed = [parameter.device for parameter in model.parameters() if parameter.device.type != "meta"]
    found = [torch.device(one) for one in named if one is not None] or placed
    return list(dict.fromkeys(found))


def _as_it_is(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _finishes(config: Any) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """What a model may do to its projection: nothing, a scale (Granite, Cohere), a soft cap (Gemma)."""
    found: list[Callable[[torch.Tensor], torch.Tensor]] = [_as_it_is]
    if (factor := getattr(config, "logit_scale", None)) is not None:
        found.append(lambda logits: logits * factor)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        found.append(lambda logits: logits / divisor)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        found.append(lambda logits: torch.tanh(logits / cap) * cap)
    return found


def _attention_configs(decoder: Any) -> list[Any]:
    """The configurations that name the attention function of ``decoder``'s layers."""
    found = [getattr(module, "config", None) for module in decoder.modules()]
    named = [config for config in found if getattr(config, "_attn_implementation", None) is not None]
    return list({id(config): config for config in named}.values())


def shape_of(config: Any, item: int) -> Shape:
    """From a (text) configuration; ``item``: bytes of an element."""
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    width = getattr(config, "head_dim", None) or hidden // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    names = ("intermediate_size", "n_inner", "ffn_dim")
    inner = next((getattr(config, name) for name in names if getattr(config, name, None)), 4 * hidden)
    experts = getattr(config, "num_experts_per_tok", None) or 1
    inner = max(inner, experts * (getattr(config, "moe_intermediate_size", None) or inner))
    layers = int(config.num_hidden_layers)
    capped = heads if getattr(config, "attn_logit_softcapping", None) else 0
    cache = 2 * layers * shared * width * item
    return Shape(hidden, (heads + 2 * shared) * width, int(inner), item, cache, heads // shared, capped)


def _switches_rope(config: Any) -> bool:
    """Whether the same token at the same place is embedded otherwise in a longer text."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") == "longrope" for kind in kinds)


def _windows_of(config: Any, layers: int) -> Sequence[int | None]:
    """How far each layer looks back, by the configuration."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        on = getattr(config, "use_sliding_window", True)
        return [window if on else None] * layers
    meaning = {"full_attention": None, "sliding_attention": window}
    return [meaning.get(kind, -1) for kind in kinds]
