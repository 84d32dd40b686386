"""The ``torch_dist`` layout: a distributed checkpoint (DCP) plus Megatron's metadata, read without Megatron.

Tensors are stored whole, whatever the parallelism that saved them. Format: shared/reference/megatron.md, section 3.2.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.dcp_store import DcpStore, Index
from autoeval.convert.errors import ConversionError
from autoeval.convert.names import canonical, is_weight
from autoeval.convert.run_config import read_run_config
from autoeval.convert.safe_load import inside, load_restricted
from autoeval.convert.source import LastRead
from recorder.untrusted import parse_json

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding.word_embeddings.weight"
_STACKED = re.compile(r"^decoder\.layers\.(?!\d)")
_EXPERTS = re.compile(r"\.mlp\.experts\.experts\.(?!\d)")


class TorchDistSource(LastRead):
    """Keys may be stacked ([layers, …], experts [layers, experts, …]), per layer, per expert, or have SwiGLU's halves
    apart (``weight_w`` gate, ``_v`` up)."""

    layout = "torch_dist"

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        _check_backend(inside(path, "metadata.json"))
        self._store = DcpStore(path)
        # canonical name -> parts to be joined along axis 0: (stored key, leading indices: layer, expert)
        self._places = name_all(self._store, {key: key for key in self._store.tensors if is_weight(key)})
        self._names = frozenset(self._places)
        self.args = self._read_args()

    def _read(self, name: str) -> Tensor:
        return self._store.read(self._places[name])

    def _read_args(self) -> argparse.Namespace:
        """From ``common.pt`` (megatron-core up to 0.18) or the item ``common_state/shard_0_1`` (from 0.19)."""
        common: Any
        if (self.path / "common.pt").is_file():
            common, where = load_restricted(inside(self.path, "common.pt")), str(self.path / "common.pt")
        elif "common_state/shard_0_1" in self._store:
            common, where = self._store.object("common_state/shard_0_1"), f"{self.path}: common_state/shard_0_1"
            common = common[0] if isinstance(common, list) and len(common) == 1 else common
        else:
            raise ConversionError(f"{self.path}: neither common.pt nor the stored item common_state/shard_0_1 is there")
        args = common.get("args") if isinstance(common, dict) else None
        if isinstance(args, argparse.Namespace):
            return args
        if args is not None or EMBEDDING not in self._store.tensors:
            raise ConversionError(f"{where}: no training arguments ('args') in it")
        return read_run_config(self.path, self._store.tensors[EMBEDDING].shape[0])


def name_all(store: DcpStore, keys: dict[str, str]) -> dict[str, list[tuple[str, Index]]]:
    """Canonical name -> what makes it up. ``keys`` maps each name, without the layout's prefixes, to its stored key."""
    places: dict[str, list[tuple[str, Index]]] = {}
    for name in sorted(keys):
        store.check_extent(keys[name])
        parts = [name]
        if name.endswith(("_v", "_w")) and ".linear_fc1." in name:
            name = name[:-2]
            parts = [f"{name}_w", f"{name}_v"]  # the gate comes first in Megatron's fused weight
            if missing := [part for part in parts if part not in keys]:
                raise ConversionError(f"{store.path}: {missing[0]} is not there, its other half is")
        for single, index in _unstacked(name, store.tensors[keys[parts[0]]].shape):
            place = [(keys[part], index) for part in parts]
            if places.setdefault(canonical(single), place) != place:
                raise ConversionError(f"{store.path}: {name} and {places[canonical(single)][0][0]} are the same weight")
    return places


def _unstacked(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Index]]:
    """The names in a stored tensor: leading axes are layers and experts where the name has no number for them."""
    layers = range(shape[0]) if _STACKED.match(name) else [None]
    for layer in layers:
        index: Index = () if layer is None else (layer,)
        named = name if layer is None else _STACKED.sub(f"decoder.layers.{layer}.", name, count=1)
        if not _EXPERTS.search(named):
            yield named, index
            continue
        for expert in range(shape[len(index)]):
            yield _EXPERTS.sub(f".mlp.experts.experts.{expert}.", named, count=1), (*index, expert)


def _check_backend(path: Path) -> None:
    try:
        metadata = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON: {error}") from error
    backend = metadata.get("sharded_backend") if isinstance(metadata, dict) else None
    if backend == "zarr":
        raise ConversionError(
            f"{path}: a zarr checkpoint, which Megatron-LM itself no longer reads; convert it to torch_dist with a "
            "Megatron-LM of 2025 (load it, and save it with --ckpt-format torch_dist)"
        )
    if backend != "torch_dist":
        raise ConversionError(f"{path}: sharded_backend is {backend!r}, only 'torch_dist' is supported")
