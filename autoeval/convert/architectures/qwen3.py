"""Qwen3: Llama with a norm on every head's queries and keys."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.llama import HF, LLAMA_EXPRESSES, LLAMA_ROWS, MEGATRON, llama_config
from autoeval.convert.transforms import norm

QWEN3 = Architecture(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    expresses={**LLAMA_EXPRESSES, "qk_layernorm": (True,)},
    config=llama_config,
    embedding="model.embed_tokens.weight",
    rows=(
        *LLAMA_ROWS,
        Row(HF + "self_attn.q_norm.weight", MEGATRON + "self_attention.q_layernorm.weight", norm),
        Row(HF + "self_attn.k_norm.weight", MEGATRON + "self_attention.k_layernorm.weight", norm),
    ),
)
