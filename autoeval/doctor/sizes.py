"""What the newest checkpoint takes and what its conversion will take, from names, sizes and metadata alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from autoeval.checkpoints import Checkpoint
from autoeval.checkpoints.dcp_metadata import DcpMetadata, DcpMetadataError, read_dcp_metadata
from autoeval.tasks.converted import converted_models, size_of

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 2, "float8_e5m2": 2}
_TOKENIZER_BYTES = 8_000_000
_EMBEDDING = "word_embeddings.weight"


@dataclass(frozen=True)
class Sizes:
    """Bytes. ``converted`` is 0 where nothing is converted; ``rows`` of the embedding, where that is known."""

    checkpoint: int
    converted: int
    how: str
    rows: int | None = None


def sizes_of(newest: Checkpoint, run_directory: Path) -> Sizes:
    """Measured on what is there: models converted before, else the checkpoint's own list of tensors, else its files."""
    on_disk = size_of(newest.path)
    if newest.format == "huggingface":
        return Sizes(on_disk, 0, "its model is run where it lies")
    metadata = _metadata(newest.path)
    rows = None if metadata is None else _rows(metadata)
    if former := [size_of(path) for path in converted_models(run_directory)]:
        return Sizes(on_disk, max(former), "as models converted before", rows)
    if metadata is not None:
        return Sizes(on_disk, _weights(metadata) + _TOKENIZER_BYTES, "by its list of tensors", rows)
    return Sizes(on_disk, on_disk + _TOKENIZER_BYTES, "at most as much as its files")


def _metadata(directory: Path) -> DcpMetadata | None:
    try:
        return read_dcp_metadata(directory)
    except (OSError, DcpMetadataError):
        return None


def _weights(metadata: DcpMetadata) -> int:
    """Of what the model keeps: the optimizer's tensors are not read, and a float8 one is written as two bytes."""
    kept = {key: tensor for key, tensor in metadata.tensors.items() if "optim" not in key.split(".")[0]}
    return sum(math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 0) for tensor in kept.values())


def _rows(metadata: DcpMetadata) -> int | None:
    found = [t.shape[0] for key, t in metadata.tensors.items() if key.endswith(_EMBEDDING) and "optim" not in key]
    return min(found, default=None)
