"""From an architecture's table to the tensors of one model: which are written, of what shape, and how each is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert import transforms
from autoeval.convert.architectures import Architecture, Row
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.source import Source
from autoeval.convert.writer import Planned

if TYPE_CHECKING:
    from torch import Tensor

# Raised when a change outside the files that are hashed below alters the converted weights: a receipt of another version
# is not reused.
VERSION = 3


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
    if left := {name for name in source.names() - used if not _predicts_further(name, target.model)}:
        raise ConversionError(
            f"{source.path}: {target.architecture.name} has no place for {', '.join(sorted(left)[:3])}"
            + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        )
    if missing := used - source.names():
        raise ConversionError(f"{source.path}: the checkpoint has no {', '.join(sorted(missing)[:3])}")
    expected = _shapes(target)
    if set(expected) != {row.target for row in rows} or len(expected) != len(rows):
        differ = sorted(set(expected) ^ {row.target for row in rows})
        raise ConversionError(f"{source.path}: the mapping and transformers differ in {', '.join(differ[:3])}")
    return [Planned(row.target, expected[row.target], _reader(source, row, target), row.dtype) for row in rows]


def needs_float32(target: Target) -> bool:
    """Whether a transform makes weights that bfloat16 and float16 could not hold exactly: norms stored minus one."""
    return target.model.zero_centered_norm and any(row.transform is transforms.norm for row in target.architecture.rows)


def _predicts_further(name: str, model: ModelArguments) -> bool:
    """The heads of multi-token prediction: nothing that the model itself computes goes through them."""
    return model.further_tokens > 0 and name.startswith("mtp.")


def _shapes(target: Target) -> dict[str, tuple[int, ...]]:
    """Names and shapes as ``save_pretrained`` writes them, which are not those of the modules for some architectures."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(target, "float32"))
        state = revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if target.tied:
        shapes.pop(target.architecture.output.target, None)
    return shapes


def _rows(target: Target) -> Iterator[Row]:
    """The table's rows, one for every layer and expert that has them; layer by layer, as they are read."""
    model, rows = target.model, target.architecture.rows
    experts = range(model.experts.count if model.experts else 0)
    for row in rows:
        if "{i}" not in row.target and row.when(model, 0):
            yield row
    for i in range(model.num_layers):
        for row in rows:
            if "{i}" in row.target and row.when(model, i):
                layer = _named(row, "{i}", i)
                yield from (_named(layer, "{e}", e) for e in experts) if "{e}" in row.target else (layer,)
    if not target.tied:
        yield target.architecture.output


def _named(row: Row, place: str, number: int) -> Row:
    return replace(row, target=row.target.replace(place, str(number)), source=row.source.replace(place, str(number)))


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
    """Hash of all that decides what is made of the stored weights: tables, configurations, transforms, arguments."""
    return hashlib.sha256(f"{VERSION} {architecture.name} {_sources()}".encode()).hexdigest()[:16]


@cache
def _sources() -> str:
    here = Path(__file__).parent
    files = [here / "arguments.py", here / "transforms.py", *sorted((here / "architectures").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
