"""The ``torch_dist`` layout: PyTorch DCP shards plus Megatron's metadata, read slice by slice without Megatron or DCP.

Each stored item is a ``torch.save`` blob at an offset of a ``.distcp`` file. Only the model's items are read, never the
optimizer's. Format: shared/reference/megatron.md, section 3.2.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints.dcp_metadata import DcpMetadataError, StoredItem, TensorInfo, read_dcp_metadata
from autoeval.convert.errors import ConversionError
from autoeval.convert.names import canonical, is_weight
from autoeval.convert.safe_load import load_restricted

if TYPE_CHECKING:
    from torch import Tensor

_STACKED = re.compile(r"^decoder\.layers\.(?!\d)")
_DTYPES = ("float32", "bfloat16", "float16")


class TorchDistSource:
    """Keys may be stacked ([layers, …]), per layer, or have SwiGLU's halves apart (``weight_w`` gate, ``_v`` up)."""

    def __init__(self, path: Path):
        self.path = path
        _check_backend(path / "metadata.json")
        try:
            metadata = read_dcp_metadata(path / ".metadata")
        except (DcpMetadataError, OSError) as error:
            raise ConversionError(str(error)) from error
        self._items: dict[str, list[StoredItem]] = defaultdict(list)
        for item in metadata.items:
            self._items[item.key].append(item)
        self._tensors: dict[str, TensorInfo] = {k: v for k, v in metadata.tensors.items() if is_weight(k)}
        self.args = self._read_args()
        # canonical name -> parts to be joined along axis 0: (stored key, layer on axis 0 or None)
        self._places = self._name_all()

    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    def tensor(self, name: str) -> Tensor:
        if name not in self._places:
            raise ConversionError(f"{self.path}: the checkpoint has no tensor {name}")
        import torch

        parts = [self._read(key, layer) for key, layer in self._places[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _name_all(self) -> dict[str, list[tuple[str, int | None]]]:
        places: dict[str, list[tuple[str, int | None]]] = {}
        for key in sorted(self._tensors):
            # Sorting puts _v before _w; the gate (_w) comes first in Megatron's fused weight.
            if key.endswith(("_v", "_w")) and ".linear_fc1." in key:
                base = key[:-2]
                if key.endswith("_v") or f"{base}_v" not in self._tensors:
                    continue
                keys = [key, f"{base}_v"]
            else:
                base, keys = key, [key]
            if not _STACKED.match(base):
                places[canonical(base)] = [(k, None) for k in keys]
                continue
            for layer in range(self._tensors[keys[0]].shape[0]):
                name = base.replace("decoder.layers.", f"decoder.layers.{layer}.", 1)
                places[canonical(name)] = [(k, layer) for k in keys]
        return places

    def _read(self, key: str, layer: int | None) -> Tensor:
        """The tensor ``key``, or its slice ``layer`` on axis 0, assembled from the items that overlap it."""
        import torch

        info = self._tensors[key]
        if info.dtype not in _DTYPES:
            raise ConversionError(f"{self.path}: {key} is stored as {info.dtype}, expected one of {', '.join(_DTYPES)}")
        self._check_extent(key, info)
        if layer is not None:
            info = TensorInfo(info.shape[1:], info.dtype)
        # NaN marks what no item fills: the check for finite weights then catches a hole.
        whole = torch.full(info.shape, float("nan"), dtype=getattr(torch, info.dtype))
        for item in self._items[key]:
            assert item.offsets is not None and item.sizes is not None
            offsets, sizes = item.offsets, item.sizes
            if layer is not None and not offsets[0] <= layer < offsets[0] + sizes[0]:
                continue
            piece = self._load_tensor(item)
            if layer is not None:
                piece = piece[layer - offsets[0]]
                offsets, sizes = offsets[1:], sizes[1:]
            whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] = piece
        return whole

    def _check_extent(self, key: str, info: TensorInfo) -> None:
        """The stored bytes must account for the tensor before memory is set aside for it."""
        width = 4 if info.dtype == "float32" else 2
        elements = 1
        for size in info.shape:
            elements *= size
        stored = sum(item.length for item in self._items[key])
        if elements * width > stored:
            raise ConversionError(
                f"{self.path}: {key} of shape {info.shape} needs {elements * width} bytes, {stored} are stored"
            )

    def _load_tensor(self, item: StoredItem) -> Tensor:
        import torch

        tensor = load_restricted(self._read_bytes(item), name=f"{self.path / item.file} ({item.key})")
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != item.sizes:
            found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ConversionError(f"{self.path / item.file}: {item.key} holds {found}, expected a tensor {item.sizes}")
        return tensor

    def _read_bytes(self, item: StoredItem) -> bytes:
        if item.transforms:
            raise ConversionError(
                f"{self.path / item.file}: {item.key} is stored through {item.transforms}: unsupported"
            )
        try:
            with (self.path / item.file).open("rb") as stream:
                stream.seek(item.offset)
                content = stream.read(item.length)
        except OSError as error:
            raise ConversionError(f"{self.path / item.file}: {error}") from error
        if len(content) != item.length:
            raise ConversionError(f"{self.path / item.file}: ends inside {item.key}: the file is torn")
        return content

    def _read_args(self) -> argparse.Namespace:
        """From ``common.pt`` (megatron-core up to 0.18) or the item ``common_state/shard_0_1`` (from 0.19)."""
        common: Any
        if (self.path / "common.pt").is_file():
            common, where = load_restricted(self.path / "common.pt"), str(self.path / "common.pt")
        elif stored := self._items.get("common_state/shard_0_1"):
            where = f"{self.path / stored[0].file} (common_state/shard_0_1)"
            common = load_restricted(self._read_bytes(stored[0]), name=where)
            common = common[0] if isinstance(common, list) and len(common) == 1 else common
        else:
            raise ConversionError(f"{self.path}: neither common.pt nor the stored item common_state/shard_0_1 is there")
        args = common.get("args") if isinstance(common, dict) else None
        if not isinstance(args, argparse.Namespace):
            raise ConversionError(f"{where}: no training arguments ('args') in it")
        return args


def _check_backend(path: Path) -> None:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON: {error}") from error
    backend = metadata.get("sharded_backend") if isinstance(metadata, dict) else None
    if backend != "torch_dist":
        raise ConversionError(f"{path}: sharded_backend is {backend!r}, only 'torch_dist' is supported")
