"""The legacy ``torch`` layout: one ``model_optim_rng.pt`` per model-parallel rank, merged here.

Files are memory-mapped, so that only the model's bytes are read. Format: shared/reference/megatron.md, section 3.1.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.names import canonical, is_weight
from autoeval.convert.safe_load import load_restricted

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_SPLIT_ROWS = re.compile(r"word_embeddings\.weight$|^output_layer\.weight$|linear_(qkv|fc1)\.(weight|bias)$")
_SPLIT_COLUMNS = re.compile(r"linear_(proj|fc2)\.weight$")
_FILES = ("model_optim_rng.pt", "model_rng.pt")


class LegacySource:
    """``checkpoint_version`` decides the order of the fused query, key and value rows; everything since 2021 is 3."""

    def __init__(self, path: Path):
        self.path = path
        first = load_restricted(_rank_file(path, _first_rank(path)))
        args = first.get("args") if isinstance(first, dict) else None
        if not isinstance(args, argparse.Namespace):
            raise ConversionError(f"{path}: no training arguments ('args') in its first rank's file")
        self.args = args
        self._model: ModelArguments = parse_arguments(args, str(path))
        self._version = float(first.get("checkpoint_version") or 0)
        # canonical name -> one tensor per tensor-parallel rank
        self._shards: dict[str, list[Tensor]] = {}
        self._collect()

    def names(self) -> frozenset[str]:
        return frozenset(self._shards)

    def tensor(self, name: str) -> Tensor:
        if name not in self._shards:
            raise ConversionError(f"{self.path}: the checkpoint has no tensor {name}")
        shards = self._shards[name]
        if ".self_attention.linear_qkv." in name and self._version < 2:
            shards = [self._reorder_qkv(name, shard) for shard in shards]
        return self._merge(name, shards)

    def _collect(self) -> None:
        ranks = [
            [self._load_rank(tensor, pipeline) for tensor in range(self._model.tensor_parallel)]
            for pipeline in range(self._model.pipeline_parallel)
        ]
        chunks = len(ranks[0][0])
        first_layer = 0
        # Virtual chunk major, then stage: the order of the layers. Counting them allows uneven splits.
        for chunk in range(chunks):
            for stage in ranks:
                if any(len(rank) != chunks for rank in stage):
                    raise ConversionError(f"{self.path}: ranks differ in their number of virtual pipeline chunks")
                first_layer += self._add([rank[chunk] for rank in stage], first_layer)
        if first_layer != self._model.num_layers:
            raise ConversionError(f"{self.path}: {first_layer} layers found, num_layers is {self._model.num_layers}")

    def _load_rank(self, tensor: int, pipeline: int) -> list[dict[str, Tensor]]:
        """The rank's chunks (one without virtual pipeline), each a flat dict under canonical names, layers local."""
        name = f"mp_rank_{tensor:02d}" + (f"_{pipeline:03d}" if self._model.pipeline_parallel > 1 else "")
        file = _rank_file(self.path, name)
        state = load_restricted(file)
        keys = (
            ["model"] if "model" in state else sorted((k for k in state if re.fullmatch(r"model\d+", k)), key=_number)
        )
        if not keys:
            raise ConversionError(f"{file}: no 'model' in it")
        return [dict(_flatten(state[key], str(file))) for key in keys]

    def _add(self, ranks: list[dict[str, Tensor]], first_layer: int) -> int:
        """Take one stage's chunk from all its tensor-parallel ranks; returns how many layers it has."""
        if any(rank.keys() != ranks[0].keys() for rank in ranks):
            raise ConversionError(f"{self.path}: tensor-parallel ranks of one stage hold different tensors")
        layers: set[int] = set()
        for name in ranks[0]:
            shards = [rank[name] for rank in ranks]
            if found := _LAYER.match(name):
                local = int(found.group(1))
                layers.add(local)
                name = f"decoder.layers.{first_layer + local}.{name[found.end() :]}"
            if name == "output_layer.weight" and self._model.tied:
                continue  # the last stage's copy of the embeddings
            # The first stage comes first, so the embeddings are its own.
            self._shards.setdefault(name, shards)
        if layers != set(range(len(layers))):
            raise ConversionError(f"{self.path}: a stage has the layers {sorted(layers)}, expected them from 0 on")
        return len(layers)

    def _merge(self, name: str, shards: list[Tensor]) -> Tensor:
        import torch

        if len(shards) == 1:
            return shards[0]
        if self._model.activation == "swiglu" and ".linear_fc1." in name:
            halves = [shard.chunk(2) for shard in shards]  # each rank has its own [gate; up]
            return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
        if _SPLIT_ROWS.search(name):
            return torch.cat(shards)
        if _SPLIT_COLUMNS.search(name):
            return torch.cat(shards, dim=1)
        if any(not torch.equal(shard, shards[0]) for shard in shards[1:]):
            raise ConversionError(f"{self.path}: {name} should be the same on all tensor-parallel ranks and is not")
        return shards[0]

    def _reorder_qkv(self, name: str, shard: Tensor) -> Tensor:
        """Rows of versions 0 ([3, heads, size]) and 1 ([heads, size, 3]) as today's [heads, 3, size]."""
        heads, size = self._model.num_heads // self._model.tensor_parallel, self._model.head_size
        rest = tuple(shard.shape[1:])
        if shard.shape[0] != 3 * heads * size:
            raise ConversionError(f"{self.path}: {name} has {shard.shape[0]} rows, expected {3 * heads * size}")
        if self._version < 1:
            rows = shard.view(3, heads, size, *rest).transpose(0, 1)
        else:
            rows = shard.view(heads, size, 3, *rest).transpose(1, 2)
        return rows.reshape(shard.shape)


def _flatten(model: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if not isinstance(model, dict):
        raise ConversionError(f"{where}: 'model' is {type(model).__name__}, expected a dict of tensors")
    nested = "language_model" in model
    pairs = _walk(model["language_model"], "") if nested else model.items()
    for key, value in pairs:
        name = re.sub(r"^module\.", "", str(key))
        if nested:
            name = re.sub(r"^(encoder|transformer)\.", "decoder.", name)
        if not is_weight(name) or value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"{where}: {name} is {type(value).__name__}, expected a tensor")
        yield canonical(name), value


def _walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_rank(path: Path) -> str:
    for name in ("mp_rank_00", "mp_rank_00_000", "mp_rank_00_000_000"):
        if (path / name).is_dir():
            return name
    raise ConversionError(f"{path}: the first rank's directory (mp_rank_00…) is not there")


def _rank_file(path: Path, rank: str) -> Path:
    for name in _FILES:
        if (path / rank / name).is_file():
            return path / rank / name
    raise ConversionError(f"{path / rank / _FILES[0]}: the file is not there; the saved arguments say it should be")


def _number(key: str) -> int:
    return int(key.removeprefix("model"))
