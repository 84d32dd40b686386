"""The legacy ``torch`` layout: one ``model_optim_rng.pt`` per model-parallel rank, merged here.

Only the model's bytes are read, never the optimizer's. Format: shared/reference/megatron.md, section 3.1.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.legacy_ranks import first_rank_file, read_degrees
from autoeval.convert.names import canonical, is_expert, is_weight, shift_expert
from autoeval.convert.safe_load import load_restricted
from autoeval.convert.source import LastRead
from autoeval.convert.stored import Stored, stack

if TYPE_CHECKING:
    from torch import Tensor

Chunk = dict[str, Stored]  # one virtual pipeline chunk of one rank: canonical names, layers and experts local

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_SPLIT_ROWS = re.compile(
    r"(word_embeddings|output_layer)\.weight$|linear_(qkv|q_proj|q_up_proj|kv_up_proj|fc1)\.(weight|bias)$"
)
_SPLIT_COLUMNS = re.compile(r"linear_(proj|fc2)\.weight$")
_GROUPED = re.compile(r"^(.*\.mlp\.experts\.)weight([12])$")


class LegacySource(LastRead):
    """``checkpoint_version`` decides the order of the fused query, key and value rows; everything since 2021 is 3."""

    layout = "torch"

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        first = load_restricted(first_rank_file(path))
        args = first.get("args") if isinstance(first, dict) else None
        if not isinstance(args, argparse.Namespace):
            raise ConversionError(f"{path}: no training arguments ('args') in its first rank's file")
        self.args = args
        self._model: ModelArguments = parse_arguments(args, str(path))
        self._degrees = read_degrees(args, str(path))
        self._version = _version(first.get("checkpoint_version"), path)
        # canonical name -> one tensor per (expert) tensor-parallel rank
        self._shards: dict[str, list[Stored]] = {}
        self._collect()
        self._names = frozenset(self._shards)

    def _read(self, name: str) -> Tensor:
        shards = self._shards[name]
        if ".self_attention.linear_qkv." in name and self._version < 2:
            import torch

            return torch.cat([self._reorder_qkv(name, shard.read()) for shard in shards])
        return self._merge(name, shards)

    def _collect(self) -> None:
        files = self._degrees.files(self.path)
        ranks = {place: self._load_rank(file) for place, file in files.items()}
        chunks = len(next(iter(ranks.values())))
        if any(len(rank) != chunks for rank in ranks.values()):
            raise ConversionError(f"{self.path}: ranks differ in their number of virtual pipeline chunks")
        first_layer = 0
        # Virtual chunk major, then stage: the order of the layers. Counting them allows uneven splits.
        for chunk in range(chunks):
            for stage in range(self._degrees.pipeline):
                here = {(t, e): rank[chunk] for (t, p, e), rank in ranks.items() if p == stage}
                first_layer += self._add(here, first_layer)
        if first_layer != self._model.num_layers:
            raise ConversionError(f"{self.path}: {first_layer} layers found, num_layers is {self._model.num_layers}")

    def _load_rank(self, file: Path) -> list[Chunk]:
        """The rank's chunks, one without virtual pipeline."""
        state = load_restricted(file)
        keys = [key for key in state if re.fullmatch(r"model\d+", str(key))] if isinstance(state, dict) else []
        keys = ["model"] if isinstance(state, dict) and "model" in state else sorted(keys, key=lambda key: int(key[5:]))
        if not keys:
            raise ConversionError(f"{file}: no 'model' in it")
        chunks = []
        for key in keys:
            weights = ((name, Stored.of(value, file, 0, name)) for name, value in _flatten(state[key], str(file)))
            chunks.append({canonical(n): part for name, stored in weights for n, part in self._experts(name, stored)})
        return chunks

    def _experts(self, name: str, stored: Stored) -> Iterator[tuple[str, Stored]]:
        """GroupedMLP keeps all local experts in two matrices, each expert's transposed (megatron-core's experts.py)."""
        found = _GROUPED.match(name)
        if not found:
            yield name, stored
            return
        experts, hidden = self._degrees.local_experts, self._model.hidden_size
        shape = (experts, hidden, -1) if found[2] == "1" else (experts, -1, hidden)
        if not experts or stored.layout.numel() % (experts * hidden):
            raise ConversionError(f"{stored.file}: {name} of shape {stored.shape} does not hold {experts} experts")
        for expert in range(experts):
            part = stored.view(lambda layout: layout.view(shape))[expert].view(lambda layout: layout.t())
            yield f"{found[1]}{expert}.linear_fc{found[2]}.weight", part

    def _add(self, ranks: dict[tuple[int, int], Chunk], first_layer: int) -> int:
        """Take one stage's chunk from all its (tensor, expert) ranks; returns how many layers it has."""
        layers: set[int] = set()
        for name, shards in self._gather(ranks):
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

    def _gather(self, ranks: dict[tuple[int, int], Chunk]) -> Iterator[tuple[str, list[Stored]]]:
        """Each tensor's shards in order of the tensor-parallel rank; experts numbered through."""
        first = next(iter(ranks.values()))
        if any(rank.keys() != first.keys() for rank in ranks.values()):
            raise ConversionError(f"{self.path}: tensor- or expert-parallel ranks of one stage hold different tensors")
        for name in first:
            if not is_expert(name):
                # Expert-parallel ranks repeat what is not an expert.
                copies = ([rank[name] for (t, _), rank in ranks.items() if t == n] for n in range(self._degrees.tensor))
                yield name, [self._same(name, shards) for shards in copies]
                continue
            for expert in range(self._degrees.expert):
                shards = [rank[name] for (_, e), rank in ranks.items() if e == expert]
                if self._degrees.expert_tensor == 1:
                    shards = [self._same(name, shards)]
                yield shift_expert(name, expert * self._degrees.local_experts), shards

    def _same(self, name: str, copies: list[Stored]) -> Stored:
        """The first of several copies. Reading all of them would multiply the time: their ends are compared."""
        if any(copy.sample() != copies[0].sample() for copy in copies[1:]):
            raise ConversionError(f"{self.path}: {name} should be the same on all expert-parallel ranks and is not")
        return copies[0]

    def _merge(self, name: str, shards: list[Stored]) -> Tensor:
        if len(shards) > 1 and self._is_gated(name):  # each rank has its own [gate; up]
            rows = shards[0].shape[0] // 2
            return stack([*(shard[:rows] for shard in shards), *(shard[rows:] for shard in shards)], 0, name)
        if _SPLIT_ROWS.search(name) or self._is_split_down_projection(name):
            return stack(shards, 0, name)
        if _SPLIT_COLUMNS.search(name):
            return stack(shards, 1, name)
        first = shards[0].read()
        if any(not first.equal(shard.read()) for shard in shards[1:]):
            raise ConversionError(f"{self.path}: {name} should be the same on all tensor-parallel ranks and is not")
        return first

    def _is_gated(self, name: str) -> bool:
        """Whether linear_fc1 has two rows (gate and up) for each column of linear_fc2."""
        module, found, _ = name.partition(".linear_fc1.")
        back = self._shards.get(f"{module}.linear_fc2.weight")
        return bool(found) and back is not None and self._shards[name][0].shape[0] == 2 * back[0].shape[1]

    def _is_split_down_projection(self, name: str) -> bool:
        """Latent attention's down projections are split by the local layer spec, whole with Transformer Engine."""
        latent, rows = self._model.latent, self._shards[name][0].shape[0]
        if latent and name.endswith(".linear_q_down_proj.weight"):
            return rows != latent.query_rank
        if latent and name.endswith(".linear_kv_down_proj.weight"):
            return rows != latent.key_value_rank + latent.rotary_size
        return False

    def _reorder_qkv(self, name: str, shard: Tensor) -> Tensor:
        """Rows of versions 0 ([3, heads, size]) and 1 ([heads, size, 3]) as today's [heads, 3, size]."""
        heads, size = self._model.num_heads // self._degrees.tensor, self._model.head_size
        rest = tuple(shard.shape[1:])
        if shard.shape[0] != 3 * heads * size:
            raise ConversionError(f"{self.path}: {name} has {shard.shape[0]} rows, expected {3 * heads * size}")
        if self._version < 1:
            rows = shard.view(3, heads, size, *rest).transpose(0, 1)
        else:
            rows = shard.view(heads, size, 3, *rest).transpose(1, 2)
        return rows.reshape(shard.shape)


def _flatten(model: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The weights under their names, without wrappers; models from before megatron-core are nested dicts."""
    if not isinstance(model, dict):
        raise ConversionError(f"{where}: 'model' is {type(model).__name__}, expected a dict of tensors")
    nested = "language_model" in model
    pairs = _walk(model["language_model"], "") if nested else model.items()
    for key, value in pairs:
        name = re.sub(r"^(module\.)+", "", str(key))
        if nested:
            name = re.sub(r"^(encoder|transformer)\.", "decoder.", name)
        if is_weight(name) and value is not None:
            yield name, value


def _walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _version(value: Any, path: Path) -> float:
    if value is not None and type(value) not in (int, float):
        raise ConversionError(f"{path}: checkpoint_version is {value!r}, expected 0, 1, 2 or 3")
    return float(value or 0)
