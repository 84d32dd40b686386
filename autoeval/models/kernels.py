"""Attention itself, on keys that lie together: with PyTorch's fused kernels, or by its formula under a soft cap."""

from __future__ import annotations

import torch
from torch.nn import functional


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """``query`` [batch, heads, n, d] on ``key`` [batch, key heads, time, d]; the heads that share a key lie side by side.

    Instead of repeating keys, the queries of one key head are stacked: ``mask``, which is added to the scores, has
    them so.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        query = query.reshape(batch, key.shape[1], groups * length, width)
    causal = causal and mask is None and length > 1
    if softcap is None:
        seen = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scaling
        )
    else:
        scores = torch.matmul(query, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        if causal:
            mask = query.new_full((length, length), -torch.inf).triu(1)
        if mask is not None:
            scores += mask
        seen = torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype), value)
    return seen.reshape(batch, heads, length, value.shape[3])


def attention_and_total(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``attention``, and the log of the sum that its softmax divides by, fp32 [batch, heads, n].

    With both, attention on two sets of keys can be joined to that on all of them. ``mask`` may be [batch, 1, 1, time].
    """
    batch, heads, length, width = query.shape
    query = query.reshape(batch, key.shape[1], -1, width)
    scaling = width**-0.5 if scaling is None else scaling
    if softcap is None and query.device.type == "cpu" and query.dtype == value.dtype:
        seen, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
    else:
        scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores += mask
        total = torch.logsumexp(scores, dim=-1)
        seen = torch.matmul((scores - total[..., None]).exp_().to(value.dtype), value)
    return seen.reshape(batch, heads, length, value.shape[3]), total.float().reshape(batch, heads, length)
