"""GPT-2 and GPT-3 style: learned positions, LayerNorm, biases everywhere."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, norm, query_key_value, transpose

# Megatron's gelu is the exact one; GPT-2's own default, gelu_new, differs by 1e-3 in the logits.
_ACTIVATIONS = {"gelu": "gelu", "openai_gelu": "gelu_new", "squared_relu": "relu2"}


def _config(model: ModelArguments) -> dict[str, Any]:
    return {
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ffn_hidden_size,
        "n_positions": model.max_positions,
        "activation_function": _ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.epsilon,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


_HF, _MEGATRON = "transformer.h.{i}.", "decoder.layers.{i}."

GPT2 = Architecture(
    name="gpt2",
    class_name="GPT2LMHeadModel",
    expresses={
        "position_embedding_type": ("learned_absolute",),
        "normalization": ("LayerNorm",),
        "activation": tuple(_ACTIVATIONS),
        "linear_bias": (True,),
        "qk_layernorm": (False,),
    },
    config=_config,
    embedding="transformer.wte.weight",
    rows=(
        Row("transformer.wte.weight", "embedding.word_embeddings.weight", copy),
        Row("transformer.wpe.weight", "embedding.position_embeddings.weight", copy),
        Row(_HF + "ln_1.weight", _MEGATRON + "input_layernorm.weight", norm),
        Row(_HF + "ln_1.bias", _MEGATRON + "input_layernorm.bias", copy),
        Row(_HF + "attn.c_attn.weight", _MEGATRON + "self_attention.linear_qkv.weight", query_key_value),
        Row(_HF + "attn.c_attn.bias", _MEGATRON + "self_attention.linear_qkv.bias", query_key_value),
        Row(_HF + "attn.c_proj.weight", _MEGATRON + "self_attention.linear_proj.weight", transpose),
        Row(_HF + "attn.c_proj.bias", _MEGATRON + "self_attention.linear_proj.bias", copy),
        Row(_HF + "ln_2.weight", _MEGATRON + "pre_mlp_layernorm.weight", norm),
        Row(_HF + "ln_2.bias", _MEGATRON + "pre_mlp_layernorm.bias", copy),
        Row(_HF + "mlp.c_fc.weight", _MEGATRON + "mlp.linear_fc1.weight", transpose),
        Row(_HF + "mlp.c_fc.bias", _MEGATRON + "mlp.linear_fc1.bias", copy),
        Row(_HF + "mlp.c_proj.weight", _MEGATRON + "mlp.linear_fc2.weight", transpose),
        Row(_HF + "mlp.c_proj.bias", _MEGATRON + "mlp.linear_fc2.bias", copy),
        Row("transformer.ln_f.weight", "decoder.final_layernorm.weight", norm),
        Row("transformer.ln_f.bias", "decoder.final_layernorm.bias", copy),
    ),
)
