"""Llama 2 and 3: rotary positions, RMSNorm, SwiGLU, grouped queries; optionally biases, Llama 3.1's rope scaling."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import (
    ROPE,
    Architecture,
    Condition,
    Row,
    with_bias,
    with_qkv_bias,
    without_experts,
)
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, gate, key, norm, query, up, value

# What Megatron hard-codes beside rope_scaling_factor.
_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ACTIVATIONS = {"swiglu": "silu", "quick_geglu": "quick_gelu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}


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
        "hidden_act": ACTIVATIONS[model.activation],
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.epsilon,
        "rope_parameters": rope,
        "attention_dropout": 0.0,
    }


def _config(model: ModelArguments) -> dict[str, Any]:
    return {**llama_config(model), "attention_bias": model.linear_bias, "mlp_bias": model.linear_bias}


HF, MEGATRON = "model.layers.{i}.", "decoder.layers.{i}."
EMBEDDING = "model.embed_tokens.weight"

LLAMA_EXPRESSES: dict[str, tuple[Any, ...]] = {
    **ROPE,
    "normalization": ("RMSNorm",),
    "activation": tuple(ACTIVATIONS),
    "linear_bias": (False,),
    "qkv_bias": (False,),
}

_QKV, _PROJ = MEGATRON + "self_attention.linear_qkv.", MEGATRON + "self_attention.linear_proj."
_FC1, _FC2 = MEGATRON + "mlp.linear_fc1.", MEGATRON + "mlp.linear_fc2."

ATTENTION_ROWS = (
    Row(HF + "self_attn.q_proj.weight", _QKV + "weight", query),
    Row(HF + "self_attn.k_proj.weight", _QKV + "weight", key),
    Row(HF + "self_attn.v_proj.weight", _QKV + "weight", value),
    Row(HF + "self_attn.q_proj.bias", _QKV + "bias", query, with_qkv_bias),
    Row(HF + "self_attn.k_proj.bias", _QKV + "bias", key, with_qkv_bias),
    Row(HF + "self_attn.v_proj.bias", _QKV + "bias", value, with_qkv_bias),
    Row(HF + "self_attn.o_proj.weight", _PROJ + "weight", copy),
    Row(HF + "self_attn.o_proj.bias", _PROJ + "bias", copy, with_bias),
)
BLOCK_ROWS = (
    Row(EMBEDDING, "embedding.word_embeddings.weight", copy),
    Row(HF + "input_layernorm.weight", MEGATRON + "input_layernorm.weight", norm),
    Row(HF + "post_attention_layernorm.weight", MEGATRON + "pre_mlp_layernorm.weight", norm),
    Row("model.norm.weight", "decoder.final_layernorm.weight", norm),
)
MLP_ROWS = (
    Row(HF + "mlp.gate_proj.weight", _FC1 + "weight", gate, without_experts),
    Row(HF + "mlp.up_proj.weight", _FC1 + "weight", up, without_experts),
    Row(HF + "mlp.down_proj.weight", _FC2 + "weight", copy, without_experts),
    Row(HF + "mlp.gate_proj.bias", _FC1 + "bias", gate, with_bias),
    Row(HF + "mlp.up_proj.bias", _FC1 + "bias", up, with_bias),
    Row(HF + "mlp.down_proj.bias", _FC2 + "bias", copy, with_bias),
)
LLAMA_ROWS = (*BLOCK_ROWS, *ATTENTION_ROWS, *MLP_ROWS)

LLAMA = Architecture(
    name="llama",
    class_name="LlamaForCausalLM",
    expresses={**LLAMA_EXPRESSES, "linear_bias": (False, True), "qkv_bias": (False, True)},
    config=_config,
    embedding=EMBEDDING,
    rows=LLAMA_ROWS,
    conditions=(
        Condition("add_qkv_bias", lambda model: model.qkv_bias == model.linear_bias, "the same as add_bias_linear"),
    ),
)
