"""Qwen3: Llama with a norm on every head's queries and keys."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.llama import (
    EMBEDDING,
    HF,
    LLAMA_EXPRESSES,
    LLAMA_ROWS,
    MEGATRON,
    llama_config,
)
from autoeval.convert.transforms import norm

QK_NORM_ROWS = (
    Row(HF + "self_attn.q_norm.weight", MEGATRON + "self_attention.q_layernorm.weight", norm),
    Row(HF + "self_attn.k_norm.weight", MEGATRON + "self_attention.k_layernorm.weight", norm),
)

QWEN3 = Architecture(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    expresses={**LLAMA_EXPRESSES, "qk_layernorm": (True,)},
    config=llama_config,
    embedding=EMBEDDING,
    rows=(*LLAMA_ROWS, *QK_NORM_ROWS),
)
