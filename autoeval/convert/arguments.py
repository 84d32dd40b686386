"""The training arguments that decide the shape and the arithmetic of the model, read from what Megatron-LM saved."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal

from autoeval.convert.errors import ConversionError

_MISSING = object()

# Arguments that change the model's arithmetic and that no architecture here expresses: each with the values under
# which it changes nothing. An argument that is absent is one that this Megatron did not have.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_experts": (None, 0),
    "multi_latent_attention": (None, False),
    "mtp_num_layers": (None, 0),
    "apply_residual_connection_post_layernorm": (None, False),
    "rotary_interleaved": (None, False),
    "rotary_seq_len_interpolation_factor": (None, 1, 1.0),
    "rotary_percent": (None, 1.0),
    "quick_geglu": (None, False),
    "geglu": (None, False),
    "qk_l2_norm": (None, False),
    "qk_clip": (None, False),
    "window_size": (None,),
    "no_rope_freq": (None, 0),
    "softmax_scale": (None,),
    "softmax_type": (None, "vanilla"),
    "attention_output_gate": (None, False),
    "experimental_attention_variant": (None,),
    "linear_attention_type": (None,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (None, 0, 0.0),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None, ""),
    "is_hybrid_model": (None, False),
    "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,),
    "retro_add_retriever": (None, False),
    "fp8_param_gather": (None, False),
    "use_mup": (None, False),
    "num_shared_experts": (None, 0),
    "layernorm_embedding": (None, False),
    "bert_binary_head_only": (None, False),
}


@dataclass(frozen=True)
class ModelArguments:
    """``head_size`` is kv_channels, ``query_groups`` the number of key/value heads; sizes count elements."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    query_groups: int
    head_size: int
    normalization: str
    epsilon: float
    zero_centered_norm: bool
    position_embedding_type: str
    rotary_base: float
    rope_scaling_factor: float | None
    activation: Literal["swiglu", "gelu", "openai_gelu", "squared_relu"]
    linear_bias: bool
    qkv_bias: bool
    qk_layernorm: bool
    tied: bool
    padded_vocab_size: int
    max_positions: int
    tensor_parallel: int
    pipeline_parallel: int


def parse_arguments(args: argparse.Namespace, where: str) -> ModelArguments:
    """Raises ``ConversionError`` naming ``where`` and the argument that is missing, wrong or not expressible."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(args, name, None)
        if not any(value is v or (type(value) is not bool and value == v) for v in neutral):
            expected = " or ".join(repr(v) for v in neutral)
            raise ConversionError(
                f"{where}: trained with {name}={value!r}, which the converted model could not express "
                f"(expected {expected})"
            )
    heads = _integer(args, "num_attention_heads", where)
    hidden = _integer(args, "hidden_size", where)
    grouped = bool(getattr(args, "group_query_attention", False))
    groups = _integer(args, "num_query_groups", where) if grouped else heads
    if heads % groups:
        raise ConversionError(f"{where}: num_query_groups={groups} does not divide num_attention_heads={heads}")
    bias = getattr(args, "add_bias_linear", None)
    if bias is None:
        bias = not getattr(args, "disable_bias_linear", False)
    return ModelArguments(
        num_layers=_integer(args, "num_layers", where),
        hidden_size=hidden,
        ffn_hidden_size=_integer(args, "ffn_hidden_size", where, default=4 * hidden),
        num_heads=heads,
        query_groups=groups,
        head_size=_integer(args, "kv_channels", where, default=hidden // heads),
        normalization=str(getattr(args, "normalization", None) or "LayerNorm"),
        epsilon=_epsilon(args, where),
        zero_centered_norm=bool(getattr(args, "apply_layernorm_1p", False)),
        position_embedding_type=_position_embedding(args),
        rotary_base=float(getattr(args, "rotary_base", None) or 10000),
        rope_scaling_factor=_rope_scaling(args),
        activation=_activation(args),
        linear_bias=bool(bias),
        qkv_bias=bool(bias) or bool(getattr(args, "add_qkv_bias", False)),
        qk_layernorm=bool(getattr(args, "qk_layernorm", False)),
        tied=not getattr(args, "untie_embeddings_and_output_weights", False),
        padded_vocab_size=_integer(args, "padded_vocab_size", where),
        max_positions=_integer(args, "max_position_embeddings", where, default=getattr(args, "seq_length", _MISSING)),
        tensor_parallel=_integer(
            args, "tensor_model_parallel_size", where, default=getattr(args, "model_parallel_size", 1)
        ),
        pipeline_parallel=_integer(args, "pipeline_model_parallel_size", where, default=1),
    )


def _integer(args: argparse.Namespace, name: str, where: str, default: Any = _MISSING) -> int:
    value = getattr(args, name, None)
    if value is None:
        value = default
    if value is _MISSING or value is None:
        raise ConversionError(f"{where}: the saved arguments have no {name}")
    if type(value) is not int or value <= 0:
        raise ConversionError(f"{where}: {name} is {value!r}, expected a positive integer")
    return value


def _epsilon(args: argparse.Namespace, where: str) -> float:
    # Renamed in Megatron-LM in January 2026 (commit 639c08ab).
    for name in ("norm_epsilon", "layernorm_epsilon"):
        if getattr(args, name, None) is not None:
            return float(getattr(args, name))
    raise ConversionError(f"{where}: the saved arguments have neither norm_epsilon nor layernorm_epsilon")


def _position_embedding(args: argparse.Namespace) -> str:
    if getattr(args, "use_rotary_position_embeddings", False):
        return "rope"
    return str(getattr(args, "position_embedding_type", None) or "learned_absolute")


def _rope_scaling(args: argparse.Namespace) -> float | None:
    if not getattr(args, "use_rope_scaling", False):
        return None
    return float(getattr(args, "rope_scaling_factor", None) or 8.0)


def _activation(args: argparse.Namespace) -> Literal["swiglu", "gelu", "openai_gelu", "squared_relu"]:
    if getattr(args, "swiglu", False):
        return "swiglu"
    if getattr(args, "squared_relu", False):
        return "squared_relu"
    return "openai_gelu" if getattr(args, "openai_gelu", False) else "gelu"
