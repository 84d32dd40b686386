"""DeepSeek-V2 and V3: multi-latent attention; experts in all layers but the first few, beside shared ones."""

from __future__ import annotations

import math
from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Condition, Row, with_experts
from autoeval.convert.architectures.llama import (
    BLOCK_ROWS,
    EMBEDDING,
    HF,
    LLAMA_EXPRESSES,
    MEGATRON,
    MLP_ROWS,
    llama_config,
)
from autoeval.convert.architectures.mixtral import HAS_EXPERTS, expert_rows
from autoeval.convert.arguments import Experts, LatentAttention, ModelArguments
from autoeval.convert.transforms import copy, gate, no_bias, norm, up


def _rope(latent: LatentAttention, base: float) -> dict[str, Any]:
    if latent.rope_type == "rope":
        return {"rope_type": "default", "rope_theta": base}
    factor = latent.scaling_factor
    return {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": factor,
        "original_max_position_embeddings": latent.original_max_positions,
        "beta_fast": latent.beta_fast,
        "beta_slow": latent.beta_slow,
        "mscale": latent.mscale,
        "mscale_all_dim": latent.mscale_all_dim,
        # Left out, transformers would take mscale for 1 where mscale_all_dim is 0.
        "attention_factor": _mscale(factor, latent.mscale) / _mscale(factor, latent.mscale_all_dim),
    }


def _mscale(factor: float, mscale: float) -> float:
    """YaRN's correction of the attention's temperature."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _config(model: ModelArguments) -> dict[str, Any]:
    latent, experts = model.latent, model.experts
    assert latent and experts
    config = llama_config(model)
    del config["head_dim"]
    return {
        **config,
        "num_key_value_heads": model.num_heads,
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.key_value_rank,
        "qk_nope_head_dim": latent.plain_size,
        "qk_rope_head_dim": latent.rotary_size,
        "v_head_dim": latent.value_size,
        "rope_parameters": _rope(latent, model.rotary_base),
        "attention_bias": False,
        **_experts_config(experts),
    }


def _experts_config(experts: Experts) -> dict[str, Any]:
    return {
        "n_routed_experts": experts.count,
        "n_shared_experts": experts.shared_ffn_hidden_size // experts.ffn_hidden_size,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.ffn_hidden_size,
        "first_k_dense_replace": experts.layers.index(True),
        "routed_scaling_factor": experts.scaling,
    }


def sigmoid_config(experts: Experts) -> dict[str, Any]:
    """Of V3's experts, which other models have with other attentions."""
    return {
        **_experts_config(experts),
        "n_group": experts.groups or 1,
        "topk_group": experts.group_top_k or 1,
        "norm_topk_prob": experts.top_k > 1,
        "num_nextn_predict_layers": 0,
    }


def _v3_config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    return {**_config(model), **sigmoid_config(model.experts), "rope_interleave": True}


def _v2_config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    return {
        **_config(model),
        "topk_method": "group_limited_greedy" if model.experts.groups else "greedy",
        "n_group": model.experts.groups or None,
        "topk_group": model.experts.group_top_k or None,
        "norm_topk_prob": False,
        "mlp_bias": False,
    }


def _with_query_rank(model: ModelArguments, _layer: int) -> bool:
    return model.latent is not None and model.latent.query_rank is not None


def _without_query_rank(model: ModelArguments, layer: int) -> bool:
    return not _with_query_rank(model, layer)


def _with_expert_bias(model: ModelArguments, layer: int) -> bool:
    return model.experts is not None and model.experts.expert_bias and with_experts(model, layer)


def _without_expert_bias(model: ModelArguments, layer: int) -> bool:
    return model.experts is not None and not model.experts.expert_bias and with_experts(model, layer)


def _dense_layers_first(model: ModelArguments) -> bool:
    return model.experts is None or (
        any(model.experts.layers) and list(model.experts.layers) == sorted(model.experts.layers)
    )


def _shared_are_whole(model: ModelArguments) -> bool:
    experts = model.experts
    return experts is None or (
        experts.shared_ffn_hidden_size > 0 and experts.shared_ffn_hidden_size % experts.ffn_hidden_size == 0
    )


def _groups_by(best: int) -> Condition:
    """A group's score is the sum of its ``best`` best experts; Megatron takes topk // group_topk of them."""

    def holds(model: ModelArguments) -> bool:
        experts = model.experts
        return experts is None or not experts.groups or experts.top_k // experts.group_top_k == best

    return Condition("moe_router_topk // moe_router_group_topk", holds, f"{best}, with moe_router_num_groups")


_EXPERTS_CONDITIONS = (
    HAS_EXPERTS,
    Condition("moe_layer_freq", _dense_layers_first, "dense layers before all layers with experts"),
    Condition("moe_shared_expert_intermediate_size", _shared_are_whole, "a positive multiple of moe_ffn_hidden_size"),
)
SIGMOID_CONDITIONS = (
    *_EXPERTS_CONDITIONS,
    _groups_by(2),
    Condition(
        "num_experts",
        lambda model: model.experts is None or model.experts.count >= 2 * max(model.experts.groups, 1),
        "at least two experts in a group",
    ),
)
_LATENT_CONDITIONS = (
    Condition("multi_latent_attention=False", lambda model: model.latent is not None, "True"),
    Condition("num_query_groups", lambda model: model.query_groups == model.num_heads, "no grouped queries"),
    # transformers fixes it for the norms inside the attention.
    Condition("norm_epsilon", lambda model: math.isclose(model.epsilon, 1e-6), "1e-6"),
    Condition(
        "rotary_scaling_factor with mscale_all_dim",
        lambda model: (
            model.latent is None
            or model.latent.rope_type != "rope"
            or _mscale(model.latent.scaling_factor, model.latent.mscale_all_dim) == 1.0
        ),
        "mscale_all_dim=0 with rope_type='rope'",
    ),
    Condition(
        "hidden_size", lambda model: model.hidden_size % model.num_heads == 0, "a multiple of num_attention_heads"
    ),
)
_EXPRESSES: dict[str, tuple[Any, ...]] = {
    **{field: values for field, values in LLAMA_EXPRESSES.items() if field not in ("latent", "experts")},
    "qk_layernorm": (True,),
    "rope_scaling_factor": (None,),
    "latent.rope_type": ("rope", "yarn"),
    "experts.shared_gate": (False,),
}

_ATTENTION, _SHARED = MEGATRON + "self_attention.", MEGATRON + "mlp.shared_experts."
_LATENT_ROWS = (
    *BLOCK_ROWS,
    Row(HF + "self_attn.q_proj.weight", _ATTENTION + "linear_q_proj.weight", copy, _without_query_rank),
    Row(HF + "self_attn.q_a_proj.weight", _ATTENTION + "linear_q_down_proj.weight", copy, _with_query_rank),
    Row(HF + "self_attn.q_a_layernorm.weight", _ATTENTION + "q_layernorm.weight", norm, _with_query_rank),
    Row(HF + "self_attn.q_b_proj.weight", _ATTENTION + "linear_q_up_proj.weight", copy, _with_query_rank),
    Row(HF + "self_attn.kv_a_proj_with_mqa.weight", _ATTENTION + "linear_kv_down_proj.weight", copy),
    Row(HF + "self_attn.kv_a_layernorm.weight", _ATTENTION + "kv_layernorm.weight", norm),
    Row(HF + "self_attn.kv_b_proj.weight", _ATTENTION + "linear_kv_up_proj.weight", copy),
    Row(HF + "self_attn.o_proj.weight", _ATTENTION + "linear_proj.weight", copy),
)
_EXPERTS_ROWS = (
    *MLP_ROWS,
    Row(HF + "mlp.gate.weight", MEGATRON + "mlp.router.weight", copy, with_experts),
    *expert_rows(HF + "mlp.experts.", ("gate_proj", "up_proj", "down_proj")),
    Row(HF + "mlp.shared_experts.gate_proj.weight", _SHARED + "linear_fc1.weight", gate, with_experts),
    Row(HF + "mlp.shared_experts.up_proj.weight", _SHARED + "linear_fc1.weight", up, with_experts),
    Row(HF + "mlp.shared_experts.down_proj.weight", _SHARED + "linear_fc2.weight", copy, with_experts),
)
_BIAS = HF + "mlp.gate.e_score_correction_bias"
SIGMOID_ROWS = (
    *_EXPERTS_ROWS,
    Row(_BIAS, MEGATRON + "mlp.router.expert_bias", copy, _with_expert_bias, "float32"),
    Row(_BIAS, MEGATRON + "mlp.router.weight", no_bias, _without_expert_bias, "float32"),
)

DEEPSEEK_V3 = Architecture(
    name="deepseek_v3",
    class_name="DeepseekV3ForCausalLM",
    expresses={**_EXPRESSES, "experts.score_function": ("sigmoid",)},
    config=_v3_config,
    embedding=EMBEDDING,
    rows=(*_LATENT_ROWS, *SIGMOID_ROWS),
    conditions=(*_LATENT_CONDITIONS, *SIGMOID_CONDITIONS),
)

DEEPSEEK_V2 = Architecture(
    name="deepseek_v2",
    class_name="DeepseekV2ForCausalLM",
    expresses={
        **_EXPRESSES,
        "experts.score_function": ("softmax",),
        "experts.pre_softmax": (True,),
        "experts.expert_bias": (False,),
    },
    config=_v2_config,
    embedding=EMBEDDING,
    rows=(*_LATENT_ROWS, *_EXPERTS_ROWS),
    conditions=(*_LATENT_CONDITIONS, *_EXPERTS_CONDITIONS, _groups_by(1)),
)
