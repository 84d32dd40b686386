"""What an architecture is: which arguments it can express, its Hugging Face configuration, and a table of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import Transform, copy

# Which layers have a row: the model and the layer's number decide (0 for rows outside the layers).
When = Callable[[ModelArguments, int], bool]


def always(_model: ModelArguments, _layer: int) -> bool:
    return True


def with_experts(model: ModelArguments, layer: int) -> bool:
    return model.experts is not None and model.experts.layers[layer]


def without_experts(model: ModelArguments, layer: int) -> bool:
    return not with_experts(model, layer)


def with_bias(model: ModelArguments, _layer: int) -> bool:
    return model.linear_bias


def without_bias(model: ModelArguments, _layer: int) -> bool:
    return not model.linear_bias


def with_qkv_bias(model: ModelArguments, _layer: int) -> bool:
    return model.qkv_bias


def without_qkv_bias(model: ModelArguments, _layer: int) -> bool:
    return not model.qkv_bias


@dataclass(frozen=True)
class Row:
    """``target`` (Hugging Face) is made of ``source`` (canonical Megatron name). ``{i}`` stands for the layer, ``{e}``
    for the expert; layers for which ``when`` is false have no such tensor. ``dtype`` is set where transformers keeps one
    whatever the model's is."""

    target: str
    source: str
    transform: Transform
    when: When = always
    dtype: str | None = None


@dataclass(frozen=True)
class Condition:
    """What no list of values can say: a relation between arguments. ``expected`` completes "expected …"."""

    argument: str
    holds: Callable[[ModelArguments], bool]
    expected: str


# Fields of ModelArguments that most architectures can only have like this; a table overrides what it knows better.
PLAIN: dict[str, tuple[Any, ...]] = {
    "experts": (None,),
    "latent": (None,),
    "window": (None,),
    "qk_layernorm": (False,),
}
ROPE: dict[str, tuple[Any, ...]] = {
    **PLAIN,
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
}

HEADS_FILL_HIDDEN = Condition(
    "kv_channels", lambda model: model.head_size * model.num_heads == model.hidden_size, "hidden_size / heads"
)


@dataclass(frozen=True)
class Architecture:
    """``expresses`` maps a field of ``ModelArguments`` (``experts.top_k``: of its part) to the values that this
    architecture can take."""

    name: str  # Hugging Face's model_type
    class_name: str
    expresses: Mapping[str, tuple[Any, ...]]
    config: Callable[[ModelArguments], dict[str, Any]]
    rows: tuple[Row, ...]
    # Rows along the vocabulary, which are cut to the tokenizer's size.
    embedding: str
    output: Row = Row("lm_head.weight", "output_layer.weight", copy)
    conditions: tuple[Condition, ...] = ()

    def complaints(self, model: ModelArguments) -> Iterator[str]:
        """Every argument that this architecture cannot express, named as on Megatron's command line."""
        for field, values in self.expresses.items():
            found = _value(model, field)
            if found not in values:
                shown = found.count if field == "experts" else True if field == "latent" else found
                yield f"{_ARGUMENTS.get(field, field)}={shown!r} (expected {' or '.join(map(repr, values))})"
        for condition in self.conditions:
            if not condition.holds(model):
                yield f"{condition.argument} (expected {condition.expected})"


def _value(model: ModelArguments, field: str) -> Any:
    value: Any = model
    for part in field.split("."):
        value = None if value is None else getattr(value, part)
    return value


# What the fields are called on Megatron's command line, for error messages.
_ARGUMENTS = {
    "experts": "num_experts",
    "latent": "multi_latent_attention",
    "window": "window_size (as tokens)",
    "linear_bias": "add_bias_linear",
    "qkv_bias": "add_qkv_bias",
    "zero_centered_norm": "apply_layernorm_1p",
    "activation": "swiglu/quick_geglu/squared_relu/bias_gelu_fusion (the activation)",
    "experts.score_function": "moe_router_score_function",
    "experts.pre_softmax": "moe_router_pre_softmax",
    "experts.scaling": "moe_router_topk_scaling_factor",
    "experts.groups": "moe_router_num_groups",
    "experts.expert_bias": "moe_router_enable_expert_bias",
    "experts.shared_ffn_hidden_size": "moe_shared_expert_intermediate_size",
    "experts.shared_gate": "moe_shared_expert_gate",
    "latent.rope_type": "rope_type",
}
