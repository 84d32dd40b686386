"""One name per tensor, whatever wrote the checkpoint.

The canonical names are those of megatron-core's local layer spec with global layer numbers, and one name per expert:
``decoder.layers.3.self_attention.linear_qkv.weight``, ``decoder.layers.3.pre_mlp_layernorm.weight``,
``decoder.layers.3.mlp.experts.7.linear_fc1.weight``.
"""

from __future__ import annotations

import re

_SUFFIXES = (
    # Transformer Engine fuses a norm into the linear layer behind it; sharded checkpoints always use its names.
    (re.compile(r"\.self_attention\.linear_qkv\.layer_norm_(weight|bias)$"), r".input_layernorm.\1"),
    (re.compile(r"\.self_attention\.linear_q_up_proj\.layer_norm_(weight|bias)$"), r".self_attention.q_layernorm.\1"),
    (re.compile(r"\.self_attention\.linear_kv_up_proj\.layer_norm_(weight|bias)$"), r".self_attention.kv_layernorm.\1"),
    (re.compile(r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$"), r".pre_mlp_layernorm.\1"),
    # Experts: one module each (SequentialMLP, or a sharded checkpoint), or numbered weights (TEGroupedMLP).
    (re.compile(r"\.mlp\.experts\.(?:local_experts|experts)\.(\d+)\."), r".mlp.experts.\1."),
    (re.compile(r"\.mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$"), r".mlp.experts.\3.\1.\2"),
    # Before megatron-core ("legacy models").
    (re.compile(r"\.(?:self_)?attention\.query_key_value\."), ".self_attention.linear_qkv."),
    (re.compile(r"\.(?:self_)?attention\.dense\."), ".self_attention.linear_proj."),
    (re.compile(r"\.mlp\.dense_h_to_4h\."), ".mlp.linear_fc1."),
    (re.compile(r"\.mlp\.dense_4h_to_h\."), ".mlp.linear_fc2."),
    (re.compile(r"\.input_norm\."), ".input_layernorm."),
    (re.compile(r"\.post_attention_(?:layer)?norm\."), ".pre_mlp_layernorm."),
    (re.compile(r"^decoder\.final_norm\."), "decoder.final_layernorm."),
)

_NOT_WEIGHTS = re.compile(r"(^|\.)(optimizer|chained_\d+|rng_state|rerun_state_machine|common_state)(\.|/|$|_)")
_EXTRA_STATE = re.compile(r"_extra_state\d*(/|$)|\.inv_freq$")
_EXPERT = re.compile(r"(\.mlp\.experts\.)(\d+)\.")


def is_weight(key: str) -> bool:
    """False for the optimizer's tensors, random states and Transformer Engine's extra states."""
    return not _NOT_WEIGHTS.match(key) and not _EXTRA_STATE.search(key)


def canonical(name: str) -> str:
    for pattern, replacement in _SUFFIXES:
        name = pattern.sub(replacement, name)
    return name


def is_expert(name: str) -> bool:
    """Whether a canonical name is that of one of many experts (a shared expert is none)."""
    return _EXPERT.search(name) is not None


def shift_expert(name: str, first: int) -> str:
    """An expert's canonical name with its number counted from ``first``."""
    return _EXPERT.sub(lambda found: f"{found[1]}{int(found[2]) + first}.", name)
