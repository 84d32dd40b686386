"""The transformer without its output projection, and the projection by itself.

Logits are vocabulary-sized: in a small model computing them where nobody asks costs more than all layers together. So
the body gives hidden states and the head is applied to the few rows that are asked for.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

HEAD_ELEMENTS = 16 * 1024 * 1024  # logits in one piece (64 MB in fp32)


class Network:
    """``body`` -> hidden states, ``head`` -> raw logits in fp32.

    Some architectures do more to logits than one matrix product (soft-capping, scaling). At construction the parts are
    compared with the whole model on a few tokens; where they differ, ``head`` is exact by asking the whole model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self._decoder = model.get_decoder()
        self._projection = model.get_output_embeddings()
        accepted = inspect.signature(self._decoder.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.split = self._decoder is not model and self._parts_make_the_whole()
        self.caches = self._has_cache()
        if not self.caches:
            logger.warning("%s keeps no key-value cache: generation computes every text anew", type(model).__name__)
        if not self.split:
            logger.info("%s: its logits are not one projection of its hidden states; all are computed", type(model))

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``input_ids`` [batch, time], padded on the right -> [batch, time, d] for ``logits``.

        No mask is needed: a causal model never looks to the right, and positions count from the left.
        """
        if not self.split:
            return self.model(input_ids=input_ids, use_cache=False).logits
        return self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state

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
        return self.logits(last), output.past_key_values

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` [rows, d] as ``hidden()`` gave it -> raw logits [rows, vocabulary] in fp32."""
        return (self._projection(hidden) if self.split else hidden).float()

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
        hidden = self._decoder(input_ids=probe, use_cache=False).last_hidden_state
        if hidden.shape[-1] != getattr(self._projection, "in_features", hidden.shape[-1]):
            return False
        parts = self._projection(hidden).float()
        return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-4)
