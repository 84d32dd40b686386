"""Writes safetensors one tensor at a time: memory holds one tensor, whatever the model's size.

Format: 8 bytes little-endian length, a JSON header with dtype, shape and byte range of each tensor, then the bytes
(huggingface.co/docs/safetensors). Shards and their index are named as ``save_pretrained`` names them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.errors import ConversionError
from recorder.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 4 * 1024**3
_CODES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written; ``read`` gives it, in any floating dtype, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Written:
    """``digests`` has a SHA-256 per tensor, ``checksum`` one over all of them in order of name."""

    files: tuple[str, ...]
    parameters: int
    digests: dict[str, str]

    @property
    def checksum(self) -> str:
        joined = "\n".join(f"{name} {digest}" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(joined.encode()).hexdigest()


def write_model(
    directory: Path, tensors: Sequence[Planned], dtype: str, *, progress: Callable[[int, int], None] | None = None
) -> Written:
    """Write all tensors as ``dtype``; ``progress`` is called with bytes done (0 before anything is written) and in all.

    Raises ``ConversionError`` for a tensor of another shape than planned or with a NaN or infinite weight.
    """
    width = _CODES[dtype][1]
    shards = _shards(tensors, width)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    )
    total, done = sum(math.prod(t.shape) * width for t in tensors), 0
    digests: dict[str, str] = {}
    if progress:
        progress(0, total)
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as stream:
            stream.write(_header(shard, dtype))
            for tensor in shard:
                content = _bytes(tensor, dtype)
                digests[tensor.name] = hashlib.sha256(content).hexdigest()
                stream.write(content)
                done += len(content)
                if progress:
                    progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if len(shards) > 1:
        places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(directory / "model.safetensors.index.json", index)
    return Written(tuple(names), sum(math.prod(t.shape) for t in tensors), digests)


def reread(directory: Path, written: Written) -> None:
    """Read every tensor back through the safetensors library; ``ConversionError`` when one is not what was written."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in written.files:
        with safe_open(directory / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                digest = hashlib.sha256(_raw(stored.get_tensor(name))).hexdigest()
                if digest != written.digests.get(name):
                    raise ConversionError(f"{directory / file}: {name} read back differs from what was written")
                found.add(name)
    if missing := set(written.digests) - found:
        raise ConversionError(f"{directory}: not in any shard: {', '.join(sorted(missing)[:3])}")


def _shards(tensors: Sequence[Planned], width: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        length = math.prod(tensor.shape) * width
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += length
    return shards


def _header(shard: Sequence[Planned], dtype: str) -> bytes:
    code, width = _CODES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end = offset + math.prod(tensor.shape) * width
        entries[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # aligned, as the format recommends
    return len(header).to_bytes(8, "little") + header


def _bytes(planned: Planned, dtype: str) -> memoryview:
    import torch

    tensor = planned.read()
    if tuple(tensor.shape) != planned.shape:
        raise ConversionError(f"{planned.name} has the shape {tuple(tensor.shape)}, expected {planned.shape}")
    tensor = tensor.to(getattr(torch, dtype)).contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise ConversionError(f"{planned.name} has NaN or infinite weights (as {dtype})")
    return _raw(tensor)


def _raw(tensor: Tensor) -> memoryview:
    import torch

    array: Any = tensor.detach().contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")
