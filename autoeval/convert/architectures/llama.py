"""Llama 2 and 3: rotary positions, RMSNorm, SwiGLU, grouped queries, no biases; optionally Llama 3.1's rope scaling."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, gate, key, norm, query, up, value

# What Megatron hard-codes beside rope_scaling_factor.
_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama_config(model: ModelArguments) -> dict[str, Any]:
    """Shared by the relatives of Llama."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rotary_base}
    if model.rope_scaling_factor is not None:
        rope = {**rope, "rope_type": "llama3", "factor": model.rope_scaling_factor, **_SCALING}
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.epsilon,
        "rope_parameters": rope,
        "attention_dropout": 0.0,
    }


HF, MEGATRON = "model.layers.{i}.", "decoder.layers.{i}."

LLAMA_EXPRESSES: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "normalization": ("RMSNorm",),
    "activation": ("swiglu",),
    "linear_bias": (False,),
    "qkv_bias": (False,),
    "qk_layernorm": (False,),
}

LLAMA_ROWS = (
    Row("model.embed_tokens.weight", "embedding.word_embeddings.weight", copy),
    Row(HF + "input_layernorm.weight", MEGATRON + "input_layernorm.weight", norm),
    Row(HF + "self_attn.q_proj.weight", MEGATRON + "self_attention.linear_qkv.weight", query),
    Row(HF + "self_attn.k_proj.weight", MEGATRON + "self_attention.linear_qkv.weight", key),
    Row(HF + "self_attn.v_proj.weight", MEGATRON + "self_attention.linear_qkv.weight", value),
    Row(HF + "self_attn.o_proj.weight", MEGATRON + "self_attention.linear_proj.weight", copy),
    Row(HF + "post_attention_layernorm.weight", MEGATRON + "pre_mlp_layernorm.weight", norm),
    Row(HF + "mlp.gate_proj.weight", MEGATRON + "mlp.linear_fc1.weight", gate),
    Row(HF + "mlp.up_proj.weight", MEGATRON + "mlp.linear_fc1.weight", up),
    Row(HF + "mlp.down_proj.weight", MEGATRON + "mlp.linear_fc2.weight", copy),
    Row("model.norm.weight", "decoder.final_layernorm.weight", norm),
)

LLAMA = Architecture(
    name="llama",
    class_name="LlamaForCausalLM",
    expresses=LLAMA_EXPRESSES,
    config=llama_config,
    embedding="model.embed_tokens.weight",
    rows=LLAMA_ROWS,
)
