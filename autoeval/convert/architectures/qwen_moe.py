"""Qwen2-MoE and Qwen3-MoE: experts in the layers that ``moe_layer_freq`` says, Qwen2 with a gated shared expert."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Condition, Row, with_experts
from autoeval.convert.architectures.llama import EMBEDDING, HF, LLAMA_ROWS, MEGATRON, llama_config
from autoeval.convert.architectures.mixtral import HAS_EXPERTS, SOFTMAX_EXPERTS, expert_rows
from autoeval.convert.architectures.qwen3 import QK_NORM_ROWS
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, gate, up


def _config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    return {
        **llama_config(model),
        "num_experts": model.experts.count,
        "num_experts_per_tok": model.experts.top_k,
        "moe_intermediate_size": model.experts.ffn_hidden_size,
        # A softmax over the chosen experts is the softmax over all, divided by the sum of the chosen.
        "norm_topk_prob": not model.experts.pre_softmax,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, has in enumerate(model.experts.layers) if not has],
    }


def _qwen2_config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    config = _config(model)
    del config["head_dim"]
    return {
        **config,
        "shared_expert_intermediate_size": model.experts.shared_ffn_hidden_size,
        "qkv_bias": model.qkv_bias,
    }


_ROWS = (
    *LLAMA_ROWS,
    Row(HF + "mlp.gate.weight", MEGATRON + "mlp.router.weight", copy, with_experts),
    *expert_rows(HF + "mlp.experts.", ("gate_proj", "up_proj", "down_proj")),
)
_SHARED = MEGATRON + "mlp.shared_experts."

QWEN3_MOE = Architecture(
    name="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    expresses={**SOFTMAX_EXPERTS, "qk_layernorm": (True,), "experts.shared_ffn_hidden_size": (0,)},
    config=_config,
    embedding=EMBEDDING,
    rows=(*_ROWS, *QK_NORM_ROWS),
    conditions=(HAS_EXPERTS,),
)

QWEN2_MOE = Architecture(
    name="qwen2_moe",
    class_name="Qwen2MoeForCausalLM",
    expresses={**SOFTMAX_EXPERTS, "qkv_bias": (False, True), "experts.shared_gate": (True,)},
    config=_qwen2_config,
    embedding=EMBEDDING,
    rows=(
        *_ROWS,
        Row(HF + "mlp.shared_expert.gate_proj.weight", _SHARED + "linear_fc1.weight", gate, with_experts),
        Row(HF + "mlp.shared_expert.up_proj.weight", _SHARED + "linear_fc1.weight", up, with_experts),
        Row(HF + "mlp.shared_expert.down_proj.weight", _SHARED + "linear_fc2.weight", copy, with_experts),
        Row(HF + "mlp.shared_expert_gate.weight", _SHARED + "gate_weight", copy, with_experts),
    ),
    conditions=(
        HAS_EXPERTS,
        Condition(
            "moe_shared_expert_intermediate_size",
            lambda model: model.experts is None or model.experts.shared_ffn_hidden_size > 0,
            "a shared expert",
        ),
        Condition(
            "kv_channels", lambda model: model.head_size * model.num_heads == model.hidden_size, "hidden_size / heads"
        ),
    ),
)
