"""Nemotron: zero-centred LayerNorm, a plain MLP (squared ReLU), rotary positions on a part of every head."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import PLAIN, Architecture, Row, with_bias
from autoeval.convert.architectures.gpt2 import ACTIVATIONS
from autoeval.convert.architectures.llama import ATTENTION_ROWS, EMBEDDING, HF, MEGATRON
from autoeval.convert.architectures.phi3 import ROTARY_PART
from autoeval.convert.architectures.starcoder2 import LAYER_NORM_BIAS_ROWS, SAME_BIASES, decoder_config
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy


def _config(model: ModelArguments) -> dict[str, Any]:
    return {
        **decoder_config(model),
        "norm_eps": model.epsilon,
        "attention_bias": model.linear_bias,
        "mlp_bias": model.linear_bias,
    }


NEMOTRON = Architecture(
    name="nemotron",
    class_name="NemotronForCausalLM",
    expresses={
        **PLAIN,
        "position_embedding_type": ("rope",),
        "normalization": ("LayerNorm",),
        "zero_centered_norm": (True,),
        "activation": tuple(ACTIVATIONS),
        "rope_scaling_factor": (None,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(
        Row(EMBEDDING, "embedding.word_embeddings.weight", copy),
        # Both sides add one to the stored weight.
        Row(HF + "input_layernorm.weight", MEGATRON + "input_layernorm.weight", copy),
        Row(HF + "post_attention_layernorm.weight", MEGATRON + "pre_mlp_layernorm.weight", copy),
        Row("model.norm.weight", "decoder.final_layernorm.weight", copy),
        *LAYER_NORM_BIAS_ROWS,
        *ATTENTION_ROWS,
        Row(HF + "mlp.up_proj.weight", MEGATRON + "mlp.linear_fc1.weight", copy),
        Row(HF + "mlp.up_proj.bias", MEGATRON + "mlp.linear_fc1.bias", copy, with_bias),
        Row(HF + "mlp.down_proj.weight", MEGATRON + "mlp.linear_fc2.weight", copy),
        Row(HF + "mlp.down_proj.bias", MEGATRON + "mlp.linear_fc2.bias", copy, with_bias),
    ),
    conditions=(SAME_BIASES, ROTARY_PART),
)
