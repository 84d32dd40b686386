"""Qwen2 and 2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.llama import HF, LLAMA_EXPRESSES, LLAMA_ROWS, MEGATRON, llama_config
from autoeval.convert.transforms import key, query, value

QWEN2 = Architecture(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    expresses={**LLAMA_EXPRESSES, "qkv_bias": (True,)},
    config=llama_config,
    embedding="model.embed_tokens.weight",
    rows=(
        *LLAMA_ROWS,
        Row(HF + "self_attn.q_proj.bias", MEGATRON + "self_attention.linear_qkv.bias", query),
        Row(HF + "self_attn.k_proj.bias", MEGATRON + "self_attention.linear_qkv.bias", key),
        Row(HF + "self_attn.v_proj.bias", MEGATRON + "self_attention.linear_qkv.bias", value),
    ),
)
