"""Real checkpoints as files in the order in which they are written, and a look at a directory at any moment."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoeval.checkpoints import ScanResult, Watcher, watch

TRACKER = "latest_checkpointed_iteration.txt"
LAYOUTS = (
    "torch_dist", "torch_dist_019", "torch_dist_integrity", "bridge", "fsdp_dtensor",
    "torch_tp2_pp2_vpp2", "torch_ep2", "huggingface_shards", "huggingface_bin",
)  # fmt: skip
_FORMATS = {"bridge": "torch_dist", "fsdp_dtensor": "fsdp_dtensor", "torch_tp2_pp2_vpp2": "torch", "torch_ep2": "torch"}


@dataclass(frozen=True)
class Save:
    """``files``: name -> content, in the order of writing. ``after``: what is written after the tracker.

    ``weights`` are the files without which, or with those of another save among which, the model is not whole.
    """

    layout: str
    files: dict[str, bytes]
    weights: frozenset[str]
    after: dict[str, bytes]

    @property
    def model_type(self) -> str:
        return "huggingface" if self.layout.startswith("huggingface") else "megatron"

    @property
    def format(self) -> str:
        return _FORMATS.get(self.layout, self.layout.partition("_")[0].replace("torch", "torch_dist"))

    def directory(self, root: Path, iteration: int) -> Path:
        return root / (f"checkpoint-{iteration}" if self.model_type == "huggingface" else f"iter_{iteration:07d}")


def write(path: Path, content: bytes, age: float) -> None:
    """Write in place, as Megatron does, and make the file ``age`` seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = time.time() - age
    os.utime(path, (moment, moment))


def look(root: Path, *, seconds_later: float = 0.0, now: float | None = None, **options: Any) -> ScanResult:
    """One scan by a new watcher, for which it is ``now``, or ``seconds_later`` than it is."""
    with clock(lambda: (time.time() if now is None else now) + seconds_later):
        return watcher(root, **options).scan()


def watcher(root: Path, **options: Any) -> Watcher:
    settings: dict[str, Any] = {
        "token_per_iteration": 0.5, "begin": 2, "end": None, "interval": 2, "check_interval_seconds": 3600.0,
    }  # fmt: skip
    return Watcher(root, "gpt", **(settings | options))


@contextmanager
def clock(now: Callable[[], float]) -> Iterator[None]:
    """The watcher's clock shows ``now()``, seconds since the epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "time", SimpleNamespace(time=now, monotonic=time.monotonic))
        yield


def put(save: Save, root: Path, iteration: int, *, age: float = 1.0) -> Path:
    """A whole save, ``age`` seconds old at its beginning, a millisecond from file to file, the tracker last."""
    directory = save.directory(root, iteration)
    number = 0
    for number, (name, content) in enumerate(save.files.items()):
        write(directory / name, content, age - number * 1e-3)
    if save.model_type == "megatron":
        write(root / TRACKER, str(iteration).encode(), age - (number + 1) * 1e-3)
    for name, content in save.after.items():
        write(directory / name, content, age - (number + 2) * 1e-3)
    return directory


def make(layout: str, place: Path, version: int) -> Save:
    """Files of a save in ``layout``; ``version`` changes the weights, not the sizes. ``place`` is an empty directory."""
    after: dict[str, bytes] = {}
    if layout.startswith("torch_dist") or layout == "bridge":
        files = _dcp(place, {"decoder.layers.weight": (2, 3, 4), "embedding.weight": (5, 4)}, version)
        mark = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        if layout != "torch_dist_019":
            files = {"common.pt": _torch_save({"iteration": version})} | files
            mark |= {"common_backend": "torch", "common_backend_version": 1}
        files["metadata.json"] = json.dumps(mark).encode()
        if layout == "torch_dist_integrity":
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            files["integrity.json"] = json.dumps({"algorithm": "sha256", "files": hashes}, indent=2).encode()
        if layout == "bridge":
            files["train_state.pt"] = _torch_save({"step": 4})
            after["run_config.yaml"] = b"model:\n  num_layers: 2\n"
        weights = {name for name in files if name.endswith((".distcp", ".metadata", "common.pt"))}
    elif layout == "fsdp_dtensor":
        files = _dcp(place, {"model.module.decoder.layers.0.weight": (3, 4), "model.module.embed": (5, 4)}, version)
        weights = set(files)
    elif layout.startswith("torch_"):
        files = _legacy(layout, version)
        weights = {name for name in files if name.endswith("model_optim_rng.pt")}
    else:
        files = _huggingface(layout, version)
        weights = {name for name in files if name.endswith((".safetensors", ".bin"))}
        after["tokenizer.json"] = b"{}"
    return Save(layout, files, frozenset(weights), after)


def _dcp(place: Path, shapes: dict[str, tuple[int, ...]], version: int) -> dict[str, bytes]:
    import torch
    import torch.distributed.checkpoint as dcp

    state: dict[str, Any] = {name: torch.full(shape, float(version)) for name, shape in shapes.items()}
    state["args"] = argparse.Namespace(num_layers=2)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(place, thread_count=2), no_dist=True)
    shards = sorted(path.name for path in place.glob("*.distcp"))
    assert len(shards) == 2
    return {name: (place / name).read_bytes() for name in (*shards, ".metadata")}


def _legacy(layout: str, version: int) -> dict[str, bytes]:
    import numpy
    import torch

    expert = layout == "torch_ep2"
    arguments = argparse.Namespace(
        tensor_model_parallel_size=1 if expert else 2,
        pipeline_model_parallel_size=1 if expert else 2,
        virtual_pipeline_model_parallel_size=None if expert else 2,
        expert_model_parallel_size=2 if expert else 1,
        lr=torch.float32,
    )
    chunks = {"model": 0} if expert else {"model0": 0, "model1": 1}
    files: dict[str, bytes] = {}
    for rank in ("00_000", "00_001") if expert else ("00_000", "00_001", "01_000", "01_001"):
        model = {key: {"weight": torch.full((3, 3), version + 0.25 * chunk)} for key, chunk in chunks.items()}
        state = {"args": arguments, "checkpoint_version": 3.0, **model, "rng_state": [numpy.arange(3)]}
        files[f"mp_rank_{rank}/distrib_optim.pt"] = _torch_save({0: torch.zeros(64)})
        files[f"mp_rank_{rank}/model_optim_rng.pt"] = _torch_save(state)
    return files


def _huggingface(layout: str, version: int) -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    tensors = {name: torch.full((4, 4), float(version)) for name in ("a", "b", "c")}
    files = {"config.json": b'{"model_type": "gpt2"}'}
    if layout == "huggingface_bin":
        return files | {"pytorch_model.bin": _torch_save(tensors)}
    shards = {name: f"model-{number:05d}-of-00003.safetensors" for number, name in enumerate(tensors, 1)}
    files |= {shards[name]: save({name: tensor}, metadata={"format": "pt"}) for name, tensor in tensors.items()}
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": shards}).encode()}


def _torch_save(value: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()
