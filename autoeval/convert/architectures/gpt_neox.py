"""GPT-NeoX: GPT-2 with rotary positions on a part of every head; its fused layer has Megatron's own order."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import HEADS_FILL_HIDDEN, PLAIN, Architecture, Condition, Row
from autoeval.convert.architectures.gpt2 import ACTIVATIONS
from autoeval.convert.architectures.phi3 import ROTARY_PART
from autoeval.convert.architectures.starcoder2 import decoder_config
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, norm


def _config(model: ModelArguments) -> dict[str, Any]:
    config = decoder_config(model)
    del config["head_dim"], config["num_key_value_heads"]
    return {
        **config,
        "layer_norm_eps": model.epsilon,
        "hidden_dropout": 0.0,
        "use_parallel_residual": False,
        "attention_bias": True,
    }


_HF, _MEGATRON = "gpt_neox.layers.{i}.", "decoder.layers.{i}."

GPT_NEOX = Architecture(
    name="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    expresses={
        **PLAIN,
        "position_embedding_type": ("rope",),
        "normalization": ("LayerNorm",),
        "activation": tuple(ACTIVATIONS),
        "rope_scaling_factor": (None,),
        "linear_bias": (True,),
    },
    config=_config,
    embedding="gpt_neox.embed_in.weight",
    output=Row("embed_out.weight", "output_layer.weight", copy),
    rows=(
        Row("gpt_neox.embed_in.weight", "embedding.word_embeddings.weight", copy),
        Row(_HF + "input_layernorm.weight", _MEGATRON + "input_layernorm.weight", norm),
        Row(_HF + "input_layernorm.bias", _MEGATRON + "input_layernorm.bias", copy),
        Row(_HF + "attention.query_key_value.weight", _MEGATRON + "self_attention.linear_qkv.weight", copy),
        Row(_HF + "attention.query_key_value.bias", _MEGATRON + "self_attention.linear_qkv.bias", copy),
        Row(_HF + "attention.dense.weight", _MEGATRON + "self_attention.linear_proj.weight", copy),
        Row(_HF + "attention.dense.bias", _MEGATRON + "self_attention.linear_proj.bias", copy),
        Row(_HF + "post_attention_layernorm.weight", _MEGATRON + "pre_mlp_layernorm.weight", norm),
        Row(_HF + "post_attention_layernorm.bias", _MEGATRON + "pre_mlp_layernorm.bias", copy),
        Row(_HF + "mlp.dense_h_to_4h.weight", _MEGATRON + "mlp.linear_fc1.weight", copy),
        Row(_HF + "mlp.dense_h_to_4h.bias", _MEGATRON + "mlp.linear_fc1.bias", copy),
        Row(_HF + "mlp.dense_4h_to_h.weight", _MEGATRON + "mlp.linear_fc2.weight", copy),
        Row(_HF + "mlp.dense_4h_to_h.bias", _MEGATRON + "mlp.linear_fc2.bias", copy),
        Row("gpt_neox.final_layer_norm.weight", "decoder.final_layernorm.weight", norm),
        Row("gpt_neox.final_layer_norm.bias", "decoder.final_layernorm.bias", copy),
    ),
    conditions=(
        Condition("num_query_groups", lambda model: model.query_groups == model.num_heads, "no grouped queries"),
        HEADS_FILL_HIDDEN,
        ROTARY_PART,
    ),
)
