"""The training arguments that decide the shape and the arithmetic of the model, read from what Megatron-LM saved.

Checked against the arguments of Megatron-LM and the fields of ``TransformerConfig`` up to megatron-core 0.19. Whatever
changes the arithmetic is either a field of ``ModelArguments`` or in the table ``_NEUTRAL``; a table of
``architectures`` then says which values it can express.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal

from autoeval.convert.errors import ConversionError

_MISSING = object()
_OFF = (None, False)

# Arguments that change the model's arithmetic and that no architecture here expresses: each with the values under
# which it changes nothing. An argument that is absent is one that this Megatron did not have.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": _OFF,
    "rotary_interleaved": _OFF,
    "rotary_seq_len_interpolation_factor": (None, 1, 1.0),
    "no_rope_freq": (None, 0),
    "mrope_section": (None,),
    "qk_l2_norm": _OFF,
    "softmax_scale": (None,),
    "softmax_type": (None, "vanilla"),
    "window_attn_skip_freq": (None,),
    "attention_output_gate": _OFF,
    "experimental_attention_variant": (None,),
    "linear_attention_type": (None,),
    "linear_attention_freq": (None,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (None, 0, 0.0),
    "moe_expert_capacity_factor": (None,),
    "moe_expert_rank_capacity_factor": (None,),
    "moe_token_dropping": _OFF,
    "moe_router_topk_limited_devices": (None,),
    "moe_router_force_load_balancing": _OFF,
    "moe_router_force_biased": (None,),
    "moe_input_jitter_eps": (None, 0, 0.0),
    "moe_apply_probs_on_input": _OFF,
    "moe_latent_size": (None,),
    "moe_mlp_glu_interleave_size": (None,),
    "moe_shared_expert_glu_interleave_size": (None,),
    "num_shared_experts": (None, 0),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None, ""),
    "is_hybrid_model": _OFF,
    "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,),
    "spec": (None,),
    "retro_add_retriever": _OFF,
    "fp8_param_gather": _OFF,
    "fp4_param_gather": _OFF,
    "use_mup": _OFF,
    "layernorm_embedding": _OFF,
    "bert_binary_head_only": _OFF,
}
_BALANCING = (None, "none", "aux_loss", "seq_aux_loss", "global_aux_loss")  # all but sinkhorn, which routes otherwise

Activation = Literal["swiglu", "quick_geglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "squared_relu"]


@dataclass(frozen=True)
class Experts:
    """Mixture of experts. ``layers`` says of every layer whether it has experts; ``shared_ffn_hidden_size`` and
    ``groups`` are 0 where there are none."""

    count: int
    ffn_hidden_size: int
    top_k: int
    score_function: str
    pre_softmax: bool
    scaling: float
    groups: int
    group_top_k: int
    expert_bias: bool
    shared_ffn_hidden_size: int
    shared_gate: bool
    layers: tuple[bool, ...]


@dataclass(frozen=True)
class LatentAttention:
    """Multi-latent attention; sizes count elements of one head, ``query_rank`` is None without compressed queries."""

    query_rank: int | None
    key_value_rank: int
    plain_size: int
    rotary_size: int
    value_size: int
    rope_type: str
    scaling_factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


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
    rotary_percent: float
    rope_scaling_factor: float | None
    window: int | None  # how many tokens a token sees, itself included
    activation: Activation
    linear_bias: bool
    qkv_bias: bool
    qk_layernorm: bool
    tied: bool
    padded_vocab_size: int
    max_positions: int
    experts: Experts | None
    latent: LatentAttention | None
    further_tokens: int  # mtp_num_layers: heads that predict more tokens ahead; the model's own logits don't use them
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int

    @property
    def gated(self) -> bool:
        """Whether linear_fc1 is two layers in one: the gate's rows, then the others."""
        return "glu" in self.activation


def parse_arguments(args: argparse.Namespace, where: str) -> ModelArguments:
    """Raises ``ConversionError`` naming ``where`` and the argument that is missing, wrong or not expressible."""
    for name, neutral in _NEUTRAL.items():
        _only(args, name, neutral, where)
    heads = _integer(args, "num_attention_heads", where)
    hidden = _integer(args, "hidden_size", where)
    layers = _integer(args, "num_layers", where)
    ffn = _integer(args, "ffn_hidden_size", where, default=4 * hidden)
    grouped = bool(getattr(args, "group_query_attention", False))
    groups = _integer(args, "num_query_groups", where) if grouped else heads
    if heads % groups:
        raise ConversionError(f"{where}: num_query_groups={groups} does not divide num_attention_heads={heads}")
    bias = getattr(args, "add_bias_linear", None)
    if bias is None:
        bias = not getattr(args, "disable_bias_linear", False)
    return ModelArguments(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_heads=heads,
        query_groups=groups,
        head_size=_integer(args, "kv_channels", where, default=hidden // heads),
        normalization=str(getattr(args, "normalization", None) or "LayerNorm"),
        epsilon=_epsilon(args, where),
        zero_centered_norm=bool(getattr(args, "apply_layernorm_1p", False))
        or bool(getattr(args, "layernorm_zero_centered_gamma", False)),
        position_embedding_type=_position_embedding(args),
        rotary_base=_number(args, "rotary_base", where, 10000),
        rotary_percent=_number(args, "rotary_percent", where, 1.0),
        rope_scaling_factor=_rope_scaling(args, where),
        window=_window(args, where),
        activation=_activation(args, bool(bias), where),
        linear_bias=bool(bias),
        qkv_bias=bool(bias) or bool(getattr(args, "add_qkv_bias", False)),
        qk_layernorm=bool(getattr(args, "qk_layernorm", False)),
        tied=not getattr(args, "untie_embeddings_and_output_weights", False),
        padded_vocab_size=_integer(args, "padded_vocab_size", where),
        max_positions=_integer(args, "max_position_embeddings", where, default=getattr(args, "seq_length", _MISSING)),
        experts=_experts(args, layers, ffn, where),
        latent=_latent(args, where),
        further_tokens=_integer(args, "mtp_num_layers", where, default=0, least=0),
        tensor_parallel=_integer(
            args, "tensor_model_parallel_size", where, default=getattr(args, "model_parallel_size", 1)
        ),
        pipeline_parallel=_integer(args, "pipeline_model_parallel_size", where, default=1),
        expert_parallel=_integer(args, "expert_model_parallel_size", where, default=1),
    )


def _only(args: argparse.Namespace, name: str, allowed: tuple[Any, ...], where: str) -> None:
    value = getattr(args, name, None)
    if not any(value is v or (type(value) is not bool and value == v) for v in allowed):
        expected = " or ".join(repr(v) for v in allowed)
        raise ConversionError(
            f"{where}: trained with {name}={value!r}, which the converted model could not express (expected {expected})"
        )


def _integer(args: argparse.Namespace, name: str, where: str, default: Any = _MISSING, least: int = 1) -> int:
    value = getattr(args, name, None)
    if value is None:
        value = default
    if value is _MISSING or value is None:
        raise ConversionError(f"{where}: the saved arguments have no {name}")
    if type(value) is not int or value < least:
        raise ConversionError(f"{where}: {name} is {value!r}, expected an integer of at least {least}")
    return value


def _number(args: argparse.Namespace, name: str, where: str, default: float) -> float:
    value = getattr(args, name, None)
    if value is None:
        return float(default)
    if type(value) not in (int, float) or value < 0:
        raise ConversionError(f"{where}: {name} is {value!r}, expected a number of at least 0")
    return float(value)


def _epsilon(args: argparse.Namespace, where: str) -> float:
    # Renamed in Megatron-LM in January 2026 (commit 639c08ab).
    for name in ("norm_epsilon", "layernorm_epsilon"):
        if getattr(args, name, None) is not None:
            return _number(args, name, where, 0.0)
    raise ConversionError(f"{where}: the saved arguments have neither norm_epsilon nor layernorm_epsilon")


def _position_embedding(args: argparse.Namespace) -> str:
    if getattr(args, "use_rotary_position_embeddings", False):
        return "rope"
    kind = str(getattr(args, "position_embedding_type", None) or "learned_absolute")
    learned = kind == "learned_absolute"
    return "none" if learned and getattr(args, "add_position_embedding", True) is False else kind


def _rope_scaling(args: argparse.Namespace, where: str) -> float | None:
    return _number(args, "rope_scaling_factor", where, 8.0) if getattr(args, "use_rope_scaling", False) else None


def _window(args: argparse.Namespace, where: str) -> int | None:
    """Megatron's (left, right) is how far a token sees besides itself; -1 is without an end."""
    window = getattr(args, "window_size", None)
    if window is None:
        return None
    ends = tuple(window) if isinstance(window, (list, tuple)) else ()
    if len(ends) != 2 or any(type(end) is not int for end in ends) or ends[0] < -1 or ends[1] not in (0, -1):
        raise ConversionError(f"{where}: window_size is {window!r}, expected (left, 0) with left of at least -1")
    if ends[0] >= 0 > ends[1]:
        raise ConversionError(f"{where}: window_size is {window!r}, which would let a token see those after it")
    return ends[0] + 1 or None


def _activation(args: argparse.Namespace, bias: bool, where: str) -> Activation:
    """Megatron's fused bias and GELU, on by default, computes the tanh approximation; unfused GELU is the exact one.

    --openai-gelu and --onnx-safe are of the models before megatron-core, which ignores them.
    """
    if getattr(args, "swiglu", False):
        return "swiglu"
    _only(args, "use_te_activation_func", _OFF, where)  # Transformer Engine's own GELUs are others
    if getattr(args, "squared_relu", False):
        return "squared_relu"
    if getattr(args, "quick_geglu", False):
        return "quick_geglu"
    fused = bool(getattr(args, "bias_gelu_fusion", False))
    if getattr(args, "geglu", False):  # of Megatron-Bridge; Megatron-LM has no flag for it
        return "geglu_tanh" if fused else "geglu"
    before_core = getattr(args, "use_legacy_models", None)
    if before_core is None:
        before_core = not (getattr(args, "use_mcore_models", False) or hasattr(args, "deprecated_use_mcore_models"))
    if before_core and getattr(args, "openai_gelu", False):
        return "gelu_tanh"
    if before_core and getattr(args, "onnx_safe", False):
        return "gelu"
    return "gelu_tanh" if bias and fused else "gelu"


def _experts(args: argparse.Namespace, layers: int, ffn: int, where: str) -> Experts | None:
    if not getattr(args, "num_experts", None):
        return None
    balancing = getattr(args, "moe_router_load_balancing_type", None)
    for kind in balancing if isinstance(balancing, list) else [balancing]:
        _only(
            argparse.Namespace(moe_router_load_balancing_type=kind), "moe_router_load_balancing_type", _BALANCING, where
        )
    groups = _integer(args, "moe_router_num_groups", where, default=0, least=0)
    return Experts(
        count=_integer(args, "num_experts", where),
        ffn_hidden_size=_integer(args, "moe_ffn_hidden_size", where, default=ffn),
        top_k=_integer(args, "moe_router_topk", where, default=2),
        score_function=str(getattr(args, "moe_router_score_function", None) or "softmax"),
        pre_softmax=bool(getattr(args, "moe_router_pre_softmax", False)),
        scaling=_number(args, "moe_router_topk_scaling_factor", where, 0.0) or 1.0,
        groups=groups,
        group_top_k=_integer(args, "moe_router_group_topk", where) if groups else 0,
        expert_bias=bool(getattr(args, "moe_router_enable_expert_bias", False)),
        shared_ffn_hidden_size=_integer(args, "moe_shared_expert_intermediate_size", where, default=0, least=0),
        shared_gate=bool(getattr(args, "moe_shared_expert_gate", False)),
        layers=_expert_layers(getattr(args, "moe_layer_freq", None), layers, where),
    )


def _expert_layers(frequency: Any, layers: int, where: str) -> tuple[bool, ...]:
    """``moe_layer_freq``: N for experts in every Nth layer from the first on, or a list with 1 for experts."""
    if frequency is None:
        frequency = 1
    if type(frequency) is int and frequency > 0:
        return tuple(i % frequency == 0 for i in range(layers))
    if isinstance(frequency, (list, tuple)) and len(frequency) == layers and set(frequency) <= {0, 1}:
        return tuple(bool(has) for has in frequency)
    raise ConversionError(
        f"{where}: moe_layer_freq is {frequency!r}, expected a positive integer or {layers} times 0 or 1"
    )


def _latent(args: argparse.Namespace, where: str) -> LatentAttention | None:
    """The defaults are those of ``MLATransformerConfig``, for arguments that the run's Megatron did not have."""
    if not getattr(args, "multi_latent_attention", False):
        return None
    ranked = getattr(args, "q_lora_rank", _MISSING) is not None
    return LatentAttention(
        query_rank=_integer(args, "q_lora_rank", where, default=512) if ranked else None,
        key_value_rank=_integer(args, "kv_lora_rank", where, default=512),
        plain_size=_integer(args, "qk_head_dim", where, default=128),
        rotary_size=_integer(args, "qk_pos_emb_head_dim", where, default=64),
        value_size=_integer(args, "v_head_dim", where, default=128),
        rope_type=str(getattr(args, "rope_type", None) or "yarn"),
        scaling_factor=_number(args, "rotary_scaling_factor", where, 40),
        original_max_positions=_integer(args, "original_max_position_embeddings", where, default=4096),
        beta_fast=_number(args, "beta_fast", where, 32),
        beta_slow=_number(args, "beta_slow", where, 1),
        mscale=_number(args, "mscale", where, 1.0),
        mscale_all_dim=_number(args, "mscale_all_dim", where, 0.0),
    )
