"""From an architecture's table to the tensors of one model: which are written, of what shape, and how each is made."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoeval.convert import transforms
from autoeval.convert.architectures import Architecture, Row
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.source import Source
from autoeval.convert.writer import Planned

if TYPE_CHECKING:
    from torch import Tensor

# Raised whenever a change here can alter the converted weights; a receipt of another version is not reused.
VERSION = 1


@dataclass(frozen=True)
class Target:
    """The model to be written. ``vocab_size`` rows of the embeddings are kept."""

    architecture: Architecture
    model: ModelArguments
    vocab_size: int
    tied: bool


def plan(source: Source, target: Target) -> list[Planned]:
    """One entry per tensor to write. Every weight of the checkpoint must be used: one left over has a meaning that
    the mapping does not know."""
    rows = list(_rows(target))
    used = {row.source for row in rows}
    if left := source.names() - used:
        raise ConversionError(
            f"{source.path}: {target.architecture.name} has no place for {', '.join(sorted(left)[:3])}"
            + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        )
    if missing := used - source.names():
        raise ConversionError(f"{source.path}: the checkpoint has no {', '.join(sorted(missing)[:3])}")
    expected = _shapes(target)
    if set(expected) != {row.target for row in rows}:
        differ = sorted(set(expected) ^ {row.target for row in rows})
        raise ConversionError(f"{source.path}: the mapping and transformers differ in {', '.join(differ[:3])}")
    return [Planned(row.target, expected[row.target], _reader(source, row, target)) for row in rows]


def _shapes(target: Target) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(target, "float32"))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if target.tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def _rows(target: Target) -> list[Row]:
    rows: list[Row] = []
    for row in target.architecture.rows:
        layers = range(target.model.num_layers) if "{i}" in row.target else range(1)
        for i in layers:
            rows.append(Row(row.target.replace("{i}", str(i)), row.source.replace("{i}", str(i)), row.transform))
    if not target.tied:
        rows.append(target.architecture.output)
    return rows


def _reader(source: Source, row: Row, target: Target) -> Callable[[], Tensor]:
    vocabulary = row.target in (target.architecture.embedding, target.architecture.output.target)

    def read() -> Tensor:
        tensor = row.transform(source.tensor(row.source), target.model)
        if vocabulary and tensor.shape[0] != target.model.padded_vocab_size:
            raise ConversionError(
                f"{source.path}: {row.source} has {tensor.shape[0]} rows, padded_vocab_size is "
                f"{target.model.padded_vocab_size}"
            )
        return tensor[: target.vocab_size] if vocabulary else tensor

    return read


def config_of(target: Target, dtype: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        target.architecture.name,
        **target.architecture.config(target.model),
        vocab_size=target.vocab_size,
        tie_word_embeddings=target.tied,
        use_cache=True,
        architectures=[target.architecture.class_name],
        dtype=dtype,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def mapping_digest(architecture: Architecture) -> str:
    """Hash of the table, of the transforms' source and of this room's version."""
    rows = [f"{row.target} {row.source} {row.transform.__name__}" for row in architecture.rows]
    text = "\n".join([str(VERSION), architecture.name, *rows, inspect.getsource(transforms)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
