"""One table per architecture; the saved arguments choose. Adding one is adding a file, a line here and a test."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.gpt2 import GPT2
from autoeval.convert.architectures.llama import LLAMA
from autoeval.convert.architectures.qwen2 import QWEN2
from autoeval.convert.architectures.qwen3 import QWEN3
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.errors import ConversionError

__all__ = ["ARCHITECTURES", "Architecture", "Row", "choose"]

ARCHITECTURES: tuple[Architecture, ...] = (GPT2, LLAMA, QWEN2, QWEN3)

# What the fields of ModelArguments are called on Megatron's command line, for error messages.
_ARGUMENTS = {
    "linear_bias": "add_bias_linear",
    "qkv_bias": "add_qkv_bias",
    "activation": "swiglu/squared_relu/openai_gelu (the activation)",
}


def choose(model: ModelArguments, where: str) -> Architecture:
    """The architecture that computes what these arguments mean; ``ConversionError`` names what none can express."""
    if model.position_embedding_type == "learned_absolute":
        architecture = GPT2
    elif model.position_embedding_type == "rope":
        architecture = QWEN3 if model.qk_layernorm else QWEN2 if model.qkv_bias and not model.linear_bias else LLAMA
    else:
        raise ConversionError(
            f"{where}: position_embedding_type is {model.position_embedding_type!r}, expected learned_absolute or rope"
        )
    for field, values in architecture.expresses.items():
        found = getattr(model, field)
        if found not in values:
            raise ConversionError(
                f"{where}: trained with {_ARGUMENTS.get(field, field)} = {found!r}, which {architecture.name} cannot "
                f"express (expected {' or '.join(map(repr, values))})"
            )
    if architecture is GPT2:
        _check_plain_attention(model, where)
    return architecture


def _check_plain_attention(model: ModelArguments, where: str) -> None:
    if model.query_groups != model.num_heads:
        raise ConversionError(f"{where}: num_query_groups = {model.query_groups}: gpt2 has no grouped-query attention")
    if model.head_size * model.num_heads != model.hidden_size:
        raise ConversionError(
            f"{where}: kv_channels = {model.head_size}: gpt2's heads must make up hidden_size {model.hidden_size}"
        )
