"""How Megatron's tensors become Hugging Face's: named functions that the tables of ``architectures`` refer to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autoeval.convert.arguments import ModelArguments
from autoeval.convert.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

Transform = Callable[["Tensor", ModelArguments], "Tensor"]


def copy(tensor: Tensor, _model: ModelArguments) -> Tensor:
    return tensor


def norm(tensor: Tensor, model: ModelArguments) -> Tensor:
    """A norm's weight; with ``apply_layernorm_1p`` Megatron stores it minus one."""
    return (tensor.float() + 1.0) if model.zero_centered_norm else tensor


def transpose(tensor: Tensor, _model: ModelArguments) -> Tensor:
    """A linear layer's weight [out, in] as GPT-2's Conv1D has it, [in, out]."""
    return tensor.t()


def query(tensor: Tensor, model: ModelArguments) -> Tensor:
    return _split_qkv(tensor, model)[0]


def key(tensor: Tensor, model: ModelArguments) -> Tensor:
    return _split_qkv(tensor, model)[1]


def value(tensor: Tensor, model: ModelArguments) -> Tensor:
    return _split_qkv(tensor, model)[2]


def query_key_value(tensor: Tensor, model: ModelArguments) -> Tensor:
    """GPT-2's fused layer: all queries, all keys, all values; bias [3 * hidden] or weight [hidden, 3 * hidden]."""
    import torch

    joined = torch.cat(_split_qkv(tensor, model))
    return joined if joined.dim() == 1 else joined.t()


def query_key_value_rows(tensor: Tensor, model: ModelArguments) -> Tensor:
    """All queries, all keys, all values in one linear layer: weight [(heads + 2 * groups) * size, hidden]."""
    import torch

    return torch.cat(_split_qkv(tensor, model))


def gate(tensor: Tensor, _model: ModelArguments) -> Tensor:
    """First half of the fused gated layer's rows [2 * ffn, …]."""
    return tensor.chunk(2)[0]


def up(tensor: Tensor, _model: ModelArguments) -> Tensor:
    return tensor.chunk(2)[1]


def no_bias(tensor: Tensor, _model: ModelArguments) -> Tensor:
    """Zeros beside a weight [out, in], where the target always adds a bias."""
    return tensor.new_zeros(tensor.shape[0])


def _split_qkv(tensor: Tensor, model: ModelArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron interleaves: per query group its queries, a key, a value; rows [groups * (queries + 2) * size, …]."""
    groups, size = model.query_groups, model.head_size
    queries = model.num_heads // groups
    rest = tuple(tensor.shape[1:])
    if tensor.shape[0] != groups * (queries + 2) * size:
        raise ConversionError(
            f"linear_qkv has {tensor.shape[0]} rows; num_query_groups {groups}, num_attention_heads {model.num_heads} "
            f"and kv_channels {size} make {groups * (queries + 2) * size}"
        )
    grouped = tensor.view(groups, queries + 2, size, *rest)
    return (
        grouped[:, :queries].reshape(-1, *rest),
        grouped[:, queries].reshape(-1, *rest),
        grouped[:, queries + 1].reshape(-1, *rest),
    )
