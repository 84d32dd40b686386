"""StarCoder2: LayerNorm and a plain MLP like GPT-2, rotary positions and grouped queries like Llama."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import ROPE, Architecture, Condition, Row, with_bias
from autoeval.convert.architectures.gpt2 import ACTIVATIONS
from autoeval.convert.architectures.llama import ATTENTION_ROWS, BLOCK_ROWS, EMBEDDING, HF, MEGATRON
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy

LAYER_NORM_BIAS_ROWS = (
    Row(HF + "input_layernorm.bias", MEGATRON + "input_layernorm.bias", copy),
    Row(HF + "post_attention_layernorm.bias", MEGATRON + "pre_mlp_layernorm.bias", copy),
    Row("model.norm.bias", "decoder.final_layernorm.bias", copy),
)
SAME_BIASES = Condition(
    "add_qkv_bias", lambda model: model.qkv_bias == model.linear_bias, "the same as add_bias_linear"
)


def decoder_config(model: ModelArguments) -> dict[str, Any]:
    """Shared by the relatives of Llama with a plain MLP."""
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "hidden_act": ACTIVATIONS[model.activation],
        "max_position_embeddings": model.max_positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model.rotary_base,
            "partial_rotary_factor": model.rotary_percent,
        },
        "attention_dropout": 0.0,
    }


def _config(model: ModelArguments) -> dict[str, Any]:
    return {
        **decoder_config(model),
        "norm_epsilon": model.epsilon,
        "use_bias": model.linear_bias,
        "sliding_window": model.window,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }


STARCODER2 = Architecture(
    name="starcoder2",
    class_name="Starcoder2ForCausalLM",
    expresses={
        **{field: values for field, values in ROPE.items() if field != "window"},
        "normalization": ("LayerNorm",),
        "activation": tuple(ACTIVATIONS),
        "rope_scaling_factor": (None,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(
        *BLOCK_ROWS,
        *LAYER_NORM_BIAS_ROWS,
        *ATTENTION_ROWS,
        Row(HF + "mlp.c_fc.weight", MEGATRON + "mlp.linear_fc1.weight", copy),
        Row(HF + "mlp.c_fc.bias", MEGATRON + "mlp.linear_fc1.bias", copy, with_bias),
        Row(HF + "mlp.c_proj.weight", MEGATRON + "mlp.linear_fc2.weight", copy),
        Row(HF + "mlp.c_proj.bias", MEGATRON + "mlp.linear_fc2.bias", copy, with_bias),
    ),
    conditions=(SAME_BIASES,),
)
