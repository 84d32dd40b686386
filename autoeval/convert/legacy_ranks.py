"""Which files the ranks of a legacy checkpoint wrote: ``mp_rank_TT[_PPP][_EEE]``, decided from the saved arguments."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.checkpoints.contents import RANK_FILES
from autoeval.convert.errors import ConversionError
from autoeval.convert.safe_load import inside

_MAX_RANKS = 65536


@dataclass(frozen=True)
class Degrees:
    """Sizes of the parallel groups; ``local_experts`` is the number of experts on one expert-parallel rank."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int
    local_experts: int

    def files(self, path: Path) -> dict[tuple[int, int, int], Path]:
        """(tensor, pipeline, expert) rank -> its file, in that order; every group must be complete."""
        found: dict[tuple[int, int, int], Path] = {}
        for t in range(self.tensor):
            for p in range(self.pipeline):
                for e in range(self.expert):
                    name = rank_name(t, p if self.pipeline > 1 else None, e if self.expert > 1 else None)
                    # Experts that are not split go round the tensor-parallel ranks: then not every pair exists.
                    if self.expert_tensor == self.tensor or _find(path, name):
                        found[t, p, e] = rank_file(path, name)
        for p in range(self.pipeline):
            here = [(t, e) for t, stage, e in found if stage == p]
            if len({t for t, _ in here}) != self.tensor or len({e for _, e in here}) != self.expert:
                raise ConversionError(
                    f"{path}: rank files of pipeline stage {p} are missing: the saved arguments say tensor parallel "
                    f"{self.tensor}, expert parallel {self.expert}, expert tensor parallel {self.expert_tensor}"
                )
        return found


def read_degrees(args: argparse.Namespace, where: str) -> Degrees:
    tensor = _degree(args, where, "tensor_model_parallel_size", "model_parallel_size")
    pipeline = _degree(args, where, "pipeline_model_parallel_size")
    expert = _degree(args, where, "expert_model_parallel_size")
    expert_tensor = _degree(args, where, "expert_tensor_parallel_size", default=tensor)
    if tensor * pipeline * expert > _MAX_RANKS:
        raise ConversionError(f"{where}: tensor {tensor} × pipeline {pipeline} × expert {expert} parallel ranks")
    if expert_tensor not in (1, tensor):
        raise ConversionError(
            f"{where}: expert_tensor_parallel_size={expert_tensor} with tensor_model_parallel_size={tensor}: of the legacy "
            "layout only 1 or the same is supported; save it with --ckpt-format torch_dist"
        )
    experts = getattr(args, "num_experts", None) or 0
    if type(experts) is not int or experts % expert:
        raise ConversionError(
            f"{where}: num_experts={experts!r} cannot be divided among {expert} expert-parallel ranks"
        )
    return Degrees(tensor, pipeline, expert, expert_tensor, experts // expert)


def rank_name(tensor: int, pipeline: int | None, expert: int | None) -> str:
    """The pipeline and expert ranks appear only where there are several."""
    return f"mp_rank_{tensor:02d}" + "".join(f"_{rank:03d}" for rank in (pipeline, expert) if rank is not None)


def first_rank_file(path: Path) -> Path:
    for name in (rank_name(0, None, None), rank_name(0, 0, None), rank_name(0, 0, 0)):
        if (path / name).is_dir():
            return rank_file(path, name)
    raise ConversionError(f"{path}: the first rank's directory (mp_rank_00…) is not there")


def rank_file(path: Path, rank: str) -> Path:
    return inside(path, f"{rank}/{_find(path, rank) or RANK_FILES[0]}")


def _find(path: Path, rank: str) -> str | None:
    found = [name for name in RANK_FILES if (path / rank / name).is_file()]
    if len(found) > 1:
        raise ConversionError(f"{path / rank}: holds {' and '.join(found)}: remove the one that is of an older save")
    return next(iter(found), None)


def _degree(args: argparse.Namespace, where: str, *names: str, default: int = 1) -> int:
    found: Any = next((value for name in names if (value := getattr(args, name, None)) is not None), default)
    if type(found) is not int or not 1 <= found <= _MAX_RANKS:
        raise ConversionError(f"{where}: {names[0]} is {found!r}, expected a positive integer")
    return found
