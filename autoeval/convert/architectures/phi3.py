"""Phi-3 and Phi-4: Llama whose rotary positions turn only a part of every head; fused queries, keys and values."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Condition, Row
from autoeval.convert.architectures.llama import (
    BLOCK_ROWS,
    EMBEDDING,
    HF,
    LLAMA_EXPRESSES,
    MEGATRON,
    llama_config,
)
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import copy, query_key_value_rows

ROTARY_PART = Condition("rotary_percent", lambda model: 0 < model.rotary_percent <= 1, "a part above 0, at most 1")


def _config(model: ModelArguments) -> dict[str, Any]:
    config = llama_config(model)
    config["rope_parameters"]["partial_rotary_factor"] = model.rotary_percent
    return {**config, "original_max_position_embeddings": model.max_positions}


PHI3 = Architecture(
    name="phi3",
    class_name="Phi3ForCausalLM",
    expresses={
        **{field: values for field, values in LLAMA_EXPRESSES.items() if field != "rotary_percent"},
        "rope_scaling_factor": (None,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(
        *BLOCK_ROWS,
        Row(HF + "self_attn.qkv_proj.weight", MEGATRON + "self_attention.linear_qkv.weight", query_key_value_rows),
        Row(HF + "self_attn.o_proj.weight", MEGATRON + "self_attention.linear_proj.weight", copy),
        Row(HF + "mlp.gate_up_proj.weight", MEGATRON + "mlp.linear_fc1.weight", copy),
        Row(HF + "mlp.down_proj.weight", MEGATRON + "mlp.linear_fc2.weight", copy),
    ),
    conditions=(ROTARY_PART,),
)
