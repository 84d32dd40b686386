"""Mixtral: Mistral with a mixture of experts in every layer, weighted by a softmax over the chosen ones."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Condition, Row, When, with_experts
from autoeval.convert.architectures.llama import (
    ATTENTION_ROWS,
    BLOCK_ROWS,
    EMBEDDING,
    HF,
    LLAMA_EXPRESSES,
    MEGATRON,
    llama_config,
)
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, gate, up

# Llama's arithmetic with experts that a softmax weighs. Sinkhorn, capacities and the like are refused before.
SOFTMAX_EXPERTS: dict[str, tuple[Any, ...]] = {
    **{field: values for field, values in LLAMA_EXPRESSES.items() if field != "experts"},
    "experts.score_function": ("softmax",),
    "experts.scaling": (1.0,),
    "experts.groups": (0,),
    "experts.expert_bias": (False,),
}
HAS_EXPERTS = Condition("num_experts=None", lambda model: model.experts is not None, "a number of experts")


def expert_rows(target: str, names: tuple[str, str, str], when: When = with_experts) -> tuple[Row, ...]:
    """Of every expert, stored under ``target``: the gate's, the other and the last linear layer, called ``names``."""
    source = MEGATRON + "mlp.experts.{e}."
    return (
        Row(f"{target}{{e}}.{names[0]}.weight", source + "linear_fc1.weight", gate, when),
        Row(f"{target}{{e}}.{names[1]}.weight", source + "linear_fc1.weight", up, when),
        Row(f"{target}{{e}}.{names[2]}.weight", source + "linear_fc2.weight", copy, when),
    )


def _config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    return {
        **llama_config(model),
        "intermediate_size": model.experts.ffn_hidden_size,
        "num_local_experts": model.experts.count,
        "num_experts_per_tok": model.experts.top_k,
        "sliding_window": model.window,
        "router_jitter_noise": 0.0,
    }


MIXTRAL = Architecture(
    name="mixtral",
    class_name="MixtralForCausalLM",
    expresses={
        **{field: values for field, values in SOFTMAX_EXPERTS.items() if field != "window"},
        "experts.pre_softmax": (False,),
        "experts.shared_ffn_hidden_size": (0,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(
        *BLOCK_ROWS,
        *ATTENTION_ROWS,
        Row(HF + "block_sparse_moe.gate.weight", MEGATRON + "mlp.router.weight", copy),
        *expert_rows(HF + "block_sparse_moe.experts.", ("w1", "w3", "w2")),
    ),
    conditions=(
        HAS_EXPERTS,
        Condition("moe_layer_freq", lambda model: model.experts is None or all(model.experts.layers), "1"),
    ),
)
