"""Are the files of one checkpoint whole? One function per layout; only headers, indices and marks are read.

Each takes the directory and what a listing said of its files, ``{name: (size, mtime_ns)}``, and raises
``NotWholeError`` (which may pass) or ``UnsupportedError`` (which will not).
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoeval.checkpoints.dcp_metadata import DcpMetadataError, read_dcp_metadata
from autoeval.checkpoints.inert_pickle import Inert, load_inert

Sizes = Mapping[str, tuple[int, int]]

MAX_PICKLE_BYTES = 512 * 2**20  # data.pkl has names and arguments, no tensors: more than this is not a checkpoint
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
RANK_FILE = "model_optim_rng.pt"


class NotWholeError(Exception):
    """Something is missing or cut short; the message says what."""


class UnsupportedError(Exception):
    """Whole or not, this can't be evaluated; the message says why and what to do."""


def sharded_backend(path: Path) -> str | None:
    """``sharded_backend`` of Megatron's ``metadata.json``, ``None`` when it is absent or the file is torn."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    backend = content.get("sharded_backend") if isinstance(content, dict) else None
    return backend if isinstance(backend, str) else None


def check_torch_dist(directory: Path, sizes: Sizes) -> tuple[int, str]:
    """Marks there and parse; every storage file there and long enough.

    Returns by how many nanoseconds the youngest file is younger than ``.metadata``, and its name: above 0 the iteration
    is being saved again over an old, whole one (or clocks differ). 0 when ``.metadata`` was written last, as it should.
    """
    if ".metadata" not in sizes:
        raise NotWholeError(".metadata is not there yet")
    try:
        metadata = read_dcp_metadata(directory / ".metadata")
    except DcpMetadataError as error:
        raise NotWholeError(str(error)) from error
    if "metadata.json" not in sizes:
        if any(key.startswith("model.") for key in metadata.tensors):
            raise UnsupportedError(
                "torch_dcp or fsdp_dtensor layout (no metadata.json, keys begin with 'model.'); "
                "convert it to torch_dist with Megatron-LM's tools/checkpoint"
            )
        raise NotWholeError("metadata.json is not there yet")
    if sharded_backend(directory / "metadata.json") is None:
        raise NotWholeError("metadata.json does not parse or names no sharded_backend")
    for file, least in metadata.file_sizes().items():
        if file not in sizes:
            raise NotWholeError(f"{file} is missing")
        size = sizes[file][0]
        if size < least:
            raise NotWholeError(f"{file} has {size} bytes, .metadata says at least {least}")
    before = [name for name in (*metadata.file_sizes(), "common.pt") if name in sizes]
    youngest = max(before, key=lambda name: sizes[name][1], default=".metadata")
    return max(0, sizes[youngest][1] - sizes[".metadata"][1]), youngest


def check_legacy(directory: Path, sizes: Sizes) -> None:
    """All rank files that the saved arguments imply, each a whole zip."""
    present = [name for name in sizes if name.endswith(f"/{RANK_FILE}")]
    if not present:
        raise NotWholeError(f"no mp_rank_*/{RANK_FILE} yet")
    newest = max(present, key=lambda name: (sizes[name][1], name))
    size, mtime_ns = sizes[newest]
    tensor, pipeline, expert = _parallelism(directory / newest, size, mtime_ns)
    for name in _rank_files(tensor, pipeline, expert):
        if name not in sizes:
            raise NotWholeError(f"{name} is missing (TP {tensor}, PP {pipeline}, EP {expert})")
        _check_zip(directory / name, *sizes[name])


def check_huggingface(directory: Path, sizes: Sizes) -> None:
    """``config.json`` parses; the index and every shard it names are there and as long as their headers say."""
    _json(directory / "config.json")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index in sizes:
            content = _json(directory / index)
            files = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(files, dict) or not files:
                raise NotWholeError(f"{index} has no weight_map")
            shards = sorted({str(file) for file in files.values()})
            break
    else:
        shards = [name for name in ("model.safetensors", "pytorch_model.bin") if name in sizes][:1]
        if not shards:
            raise NotWholeError("no model weights or no index of them yet")
    for shard in shards:
        if shard not in sizes:
            raise NotWholeError(f"{shard} is missing")
        if shard.endswith(".safetensors"):
            _check_safetensors(directory / shard, sizes[shard][0])
        else:
            _check_zip(directory / shard, *sizes[shard])


def _rank_files(tensor: int, pipeline: int, expert: int) -> list[str]:
    """Megatron's names: the pipeline and expert ranks appear only where there are several."""
    return [
        f"mp_rank_{t:02d}"
        + (f"_{p:03d}" if pipeline > 1 else "")
        + (f"_{e:03d}" if expert > 1 else "")
        + f"/{RANK_FILE}"
        for t in range(tensor)
        for p in range(pipeline)
        for e in range(expert)
    ]


@lru_cache(maxsize=4096)
def _parallelism(path: Path, _size: int, _mtime_ns: int) -> tuple[int, int, int]:
    """(TP, PP, EP) from ``args`` in a rank file. Keyed by size and time, so that nothing is read twice."""
    root = _torch_pickle(path)
    arguments = root.get("args") if isinstance(root, dict) else None
    values = arguments.state if isinstance(arguments, Inert) else arguments
    if not isinstance(values, dict):
        raise UnsupportedError(f"{path} has no 'args': which ranks there should be is unknown")

    def degree(*names: str) -> int:
        found = next((values[name] for name in names if values.get(name) is not None), 1)
        if type(found) is not int or not 1 <= found <= 65536:
            raise UnsupportedError(f"{path}: args.{names[0]} is {found!r}, expected a positive integer")
        return found

    return (
        degree("tensor_model_parallel_size", "model_parallel_size"),
        degree("pipeline_model_parallel_size"),
        degree("expert_model_parallel_size"),
    )


def _torch_pickle(path: Path) -> Any:
    """The objects in a ``torch.save`` file, tensors left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
            if entry.file_size > MAX_PICKLE_BYTES:
                raise UnsupportedError(f"{path}: its data.pkl has {entry.file_size} bytes, that is no checkpoint's")
            content = archive.read(entry)
    except FileNotFoundError as error:
        raise NotWholeError(f"{path} is missing") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise NotWholeError(f"{path} is not a whole torch.save file ({error})") from error
    try:
        return load_inert(content, tensors=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise NotWholeError(f"{path}: unreadable data.pkl ({type(error).__name__}: {error})") from error


@lru_cache(maxsize=65536)
def _check_zip(path: Path, _size: int, _mtime_ns: int) -> None:
    """A torch file that was cut short has no zip directory, which stands at its end."""
    try:
        with zipfile.ZipFile(path):
            pass
    except FileNotFoundError as error:
        raise NotWholeError(f"{path} is missing") from error
    except zipfile.BadZipFile as error:
        raise NotWholeError(f"{path} is not a whole torch.save file ({error})") from error


def _check_safetensors(path: Path, size: int) -> None:
    """https://huggingface.co/docs/safetensors: 8 bytes of header length, JSON header, then the data to the end."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > min(MAX_HEADER_BYTES, size):
            raise NotWholeError(f"{path.name} has no whole header yet")
        header = stream.read(length)
    try:
        ends = [value["data_offsets"][1] for key, value in json.loads(header).items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotWholeError(f"{path.name} has no readable header ({type(error).__name__})") from error
    if size != expected:
        raise NotWholeError(f"{path.name} has {size} bytes, its header says {expected}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotWholeError(f"{path.name} is missing") from error
    except ValueError as error:
        raise NotWholeError(f"{path.name} does not parse") from error
