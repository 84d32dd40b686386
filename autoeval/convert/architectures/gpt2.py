"""GPT-2 and GPT-3 style: learned positions, LayerNorm; where Megatron was trained without biases they are zero."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import (
    HEADS_FILL_HIDDEN,
    PLAIN,
    Architecture,
    Condition,
    Row,
    with_bias,
    with_qkv_bias,
    without_bias,
    without_qkv_bias,
)
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, no_bias, norm, query_key_value, transpose

# The fused GELU of Megatron is GPT-2's own gelu_new; the exact one differs by 1e-3 in the logits.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "squared_relu": "relu2"}


def _config(model: ModelArguments) -> dict[str, Any]:
    return {
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ffn_hidden_size,
        "n_positions": model.max_positions,
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.epsilon,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


_HF, _MEGATRON = "transformer.h.{i}.", "decoder.layers.{i}."
_ATTENTION, _MLP = _MEGATRON + "self_attention.", _MEGATRON + "mlp."

GPT2 = Architecture(
    name="gpt2",
    class_name="GPT2LMHeadModel",
    expresses={
        **PLAIN,
        "position_embedding_type": ("learned_absolute",),
        "normalization": ("LayerNorm",),
        "activation": tuple(ACTIVATIONS),
    },
    config=_config,
    embedding="transformer.wte.weight",
    rows=(
        Row("transformer.wte.weight", "embedding.word_embeddings.weight", copy),
        Row("transformer.wpe.weight", "embedding.position_embeddings.weight", copy),
        Row(_HF + "ln_1.weight", _MEGATRON + "input_layernorm.weight", norm),
        Row(_HF + "ln_1.bias", _MEGATRON + "input_layernorm.bias", copy),
        Row(_HF + "attn.c_attn.weight", _ATTENTION + "linear_qkv.weight", query_key_value),
        Row(_HF + "attn.c_attn.bias", _ATTENTION + "linear_qkv.bias", query_key_value, with_qkv_bias),
        Row(_HF + "attn.c_attn.bias", _ATTENTION + "linear_qkv.weight", no_bias, without_qkv_bias),
        Row(_HF + "attn.c_proj.weight", _ATTENTION + "linear_proj.weight", transpose),
        Row(_HF + "attn.c_proj.bias", _ATTENTION + "linear_proj.bias", copy, with_bias),
        Row(_HF + "attn.c_proj.bias", _ATTENTION + "linear_proj.weight", no_bias, without_bias),
        Row(_HF + "ln_2.weight", _MEGATRON + "pre_mlp_layernorm.weight", norm),
        Row(_HF + "ln_2.bias", _MEGATRON + "pre_mlp_layernorm.bias", copy),
        Row(_HF + "mlp.c_fc.weight", _MLP + "linear_fc1.weight", transpose),
        Row(_HF + "mlp.c_fc.bias", _MLP + "linear_fc1.bias", copy, with_bias),
        Row(_HF + "mlp.c_fc.bias", _MLP + "linear_fc1.weight", no_bias, without_bias),
        Row(_HF + "mlp.c_proj.weight", _MLP + "linear_fc2.weight", transpose),
        Row(_HF + "mlp.c_proj.bias", _MLP + "linear_fc2.bias", copy, with_bias),
        Row(_HF + "mlp.c_proj.bias", _MLP + "linear_fc2.weight", no_bias, without_bias),
        Row("transformer.ln_f.weight", "decoder.final_layernorm.weight", norm),
        Row("transformer.ln_f.bias", "decoder.final_layernorm.bias", copy),
    ),
    conditions=(
        Condition("num_query_groups", lambda model: model.query_groups == model.num_heads, "no grouped queries"),
        HEADS_FILL_HIDDEN,
    ),
)
