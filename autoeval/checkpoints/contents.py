"""Are the files of one checkpoint whole? One function per layout; only headers, indices and marks are read.

Each takes the directory, here or in a store, and what a listing said of its files, ``{name: (size, mtime_ns)}``, and
raises ``NotWholeError`` (which may pass), ``UnsupportedError`` (which will not) or, when a store cannot be asked,
``StorageError``. Each returns which files make it up, and the greatest contradiction between the times of files and the
order in which a save writes them: ``Whole``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from autoeval.checkpoints.dcp_metadata import (
    MAX_METADATA_BYTES,
    DcpMetadata,
    DcpMetadataError,
    parse_dcp_metadata,
    read_dcp_metadata,
)
from autoeval.checkpoints.inert_pickle import Inert, load_inert
from autoeval.checkpoints.place import Place, StoredPlace, open_file, read_file
from recorder.untrusted import parse_json

Sizes = Mapping[str, tuple[int, int]]

MAX_PICKLE_BYTES = 512 * 2**20  # data.pkl has names and arguments, no tensors: more than this is not a checkpoint
MAX_JSON_BYTES = 512 * 2**20  # an index names every tensor: tens of megabytes for the largest
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
# All ranks of one save end together; a longer pause between two files means that they are of two saves.
PAUSE_SECONDS = 300.0
# The second is of the first distributed optimizer (2022), which was saved in directories of its own.
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MOST_RANKS = 1 << 20
RANK_FILES = ("model_optim_rng.pt", "model_rng.pt")
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch.save before 1.6
_MODEL_KEY = re.compile(r"model\d*\.")


class NotWholeError(Exception):
    """Something is missing or cut short; the message says what."""


class MissingError(NotWholeError):
    """A file is not there: not yet, or no more."""


class UnsupportedError(Exception):
    """Whole or not, this can't be evaluated; the message says why and what to do."""


class Disorder(NamedTuple):
    """``file`` is by ``ns`` nanoseconds younger than the file ``than``, which a save writes after it."""

    ns: int = 0
    file: str = ""
    than: str = ""


class Whole(NamedTuple):
    """``files``: without one of them, or with one of another save, it would not be this checkpoint."""

    files: tuple[str, ...] = ()
    disorder: Disorder = Disorder()


def megatron_metadata(path: Place) -> dict[str, Any]:
    """Megatron's ``metadata.json``; empty when it is absent, torn, or names no ``sharded_backend``."""
    try:
        content = parse_json(read_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and isinstance(content.get("sharded_backend"), str)
    return content if whole else {}


def is_fsdp(directory: Place, sizes: Sizes) -> bool:
    """Whether DCP files without ``metadata.json`` are Megatron's ``fsdp_dtensor`` or ``torch_dcp``.

    Megatron itself tells them from ``torch_dist`` by that file alone. While a ``torch_dist`` save has not written it
    yet the keys tell: only the other two begin with ``model.``.
    """
    return ".metadata" in sizes and "metadata.json" not in sizes and _has_model_keys(_dcp_metadata(directory))


def check_dcp(directory: Place, sizes: Sizes) -> Whole:
    """``torch_dist``, ``fsdp_dtensor``, ``torch_dcp``: marks there and parse, every storage file there, long enough.

    ``.metadata`` is written after all storage files: a younger one shows that the iteration is being saved again over
    an old, whole one, whose marks stay in place till the end (or that clocks differ).
    """
    metadata = _dcp_metadata(directory)
    if "metadata.json" in sizes:
        mark = megatron_metadata(directory / "metadata.json")
        if not mark:
            raise NotWholeError("metadata.json does not parse or names no sharded_backend")
        if mark.get("common_backend") == "torch" and "common.pt" not in sizes:  # megatron-core before 0.19
            raise MissingError("common.pt is missing, metadata.json says that there is one")
    elif not _has_model_keys(metadata):
        raise MissingError("metadata.json is not there yet")
    stored = metadata.file_sizes()
    for file, least in stored.items():
        if file not in sizes:
            raise MissingError(f"{file} is missing")
        size = sizes[file][0]
        if size < least:
            raise NotWholeError(f"{file} has {size} bytes, .metadata says at least {least}")
    if "common.pt" in sizes:
        _check_zip(directory / "common.pt", *sizes["common.pt"])
    _check_integrity(directory, sizes)
    if "train_state.pt" in sizes and "run_config.yaml" not in sizes:
        raise MissingError("run_config.yaml is not there yet, which Megatron-Bridge writes after its train_state.pt")
    written = [name for name in (*stored, "common.pt") if name in sizes]
    marks = [name for name in (".metadata", "metadata.json") if name in sizes]
    return Whole((*written, *marks), _disorder(sizes, written, ".metadata"))


def check_legacy(directory: Place, sizes: Sizes) -> Whole:
    """All rank files that the saved arguments imply, each a whole zip, all of one save."""
    present = [name for name in sizes if name.rpartition("/")[2] in RANK_FILES]
    if not present:
        raise MissingError(f"no mp_rank_*/{RANK_FILES[0]} yet")
    newest = max(present, key=lambda name: (sizes[name][1], name))
    size, mtime_ns = sizes[newest]
    tensor, pipeline, expert, expert_tensor = _parallelism(directory / newest, size, mtime_ns)
    ranks = _rank_directories(tensor, pipeline, expert, expert_tensor)
    expected = [f"{rank}/{newest.rpartition('/')[2]}" for rank in ranks]
    for name in expected:
        if name not in sizes:
            raise MissingError(f"{name} is missing (TP {tensor}, PP {pipeline}, EP {expert})")
        _check_zip(directory / name, *sizes[name])
    _check_pause(sizes, expected)
    return Whole(tuple(expected))


def check_huggingface(directory: Place, sizes: Sizes) -> Whole:
    """``config.json`` parses; the index and every shard it names are there and as long as their headers say.

    Without a ``config.json`` it may be an adapter (PEFT): its configuration parses, its weights are whole.
    """
    if "config.json" not in sizes and "adapter_config.json" in sizes:
        return _check_adapter(directory, sizes)
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
            raise MissingError("no model weights or no index of them yet")
        index = ""
    for shard in shards:
        if shard not in sizes:
            raise MissingError(f"{shard} is missing")
        if shard.endswith(".safetensors"):
            _check_safetensors(directory / shard, sizes[shard][0])
        else:
            _check_zip(directory / shard, *sizes[shard])
    _check_pause(sizes, shards)
    files = ("config.json", *shards, *([index] if index else []))
    begun = _disorder(sizes, ["config.json"], max(shards, key=lambda name: sizes[name][1]))
    if begun.ns > PAUSE_SECONDS * 1e9:  # some write it last, but not long after
        return Whole(files, begun)
    return Whole(files, _disorder(sizes, shards, index) if index else Disorder())


def _check_adapter(directory: Place, sizes: Sizes) -> Whole:
    """PEFT writes the weights, then the configuration."""
    _json(directory / "adapter_config.json")
    weights = next((name for name in ADAPTER_WEIGHTS if name in sizes), None)
    if weights is None:
        raise MissingError("no adapter weights yet")
    if weights.endswith(".safetensors"):
        _check_safetensors(directory / weights, sizes[weights][0])
    else:
        _check_zip(directory / weights, *sizes[weights])
    return Whole(("adapter_config.json", weights))


def _disorder(sizes: Sizes, before: Iterable[str], mark: str) -> Disorder:
    youngest = max(before, key=lambda name: sizes[name][1], default=mark)
    return Disorder(max(0, sizes[youngest][1] - sizes[mark][1]), youngest, mark)


def _check_pause(sizes: Sizes, files: Iterable[str]) -> None:
    """A save over an old one that crashed in the middle leaves whole files of two models."""
    by_time = sorted(files, key=lambda name: sizes[name][1])
    for earlier, later in pairwise(by_time):
        seconds = (sizes[later][1] - sizes[earlier][1]) / 1e9
        if seconds > PAUSE_SECONDS:
            raise NotWholeError(
                f"{later} was written {seconds / 60:.0f} min after {earlier}: parts of two saves "
                "(if they are one, give all files one time: touch)"
            )


def _dcp_metadata(directory: Place) -> DcpMetadata:
    try:
        file = directory / ".metadata"
        return _stored_metadata(file) if isinstance(file, StoredPlace) else read_dcp_metadata(file)
    except FileNotFoundError as error:
        raise MissingError(".metadata is not there yet") from error
    except DcpMetadataError as error:
        raise NotWholeError(str(error)) from error


@lru_cache(maxsize=4)  # while shards arrive it is looked at again and again, and it may be large
def _stored_metadata(file: StoredPlace) -> DcpMetadata:
    return parse_dcp_metadata(read_file(file, MAX_METADATA_BYTES), name=str(file))


def _has_model_keys(metadata: DcpMetadata) -> bool:
    return any(_MODEL_KEY.match(key) for key in metadata.tensors)


def _check_integrity(directory: Place, sizes: Sizes) -> None:
    """``integrity.json`` names every file with its SHA-256. Only the small ones are verified: shards are big.

    One that is older than ``.metadata`` is of an earlier save and proves nothing.
    """
    if "integrity.json" not in sizes or sizes["integrity.json"][1] < sizes[".metadata"][1]:
        return
    content = _json(directory / "integrity.json")
    hashes = content.get("files") if isinstance(content, dict) else None
    if not isinstance(hashes, dict):
        raise NotWholeError("integrity.json names no files")
    for name in hashes:
        if name not in sizes:
            raise MissingError(f"{name}, which integrity.json names, is missing")
    for name in (".metadata", "metadata.json"):
        if name in hashes and _digest(directory / name) != hashes[name]:
            raise NotWholeError(f"{name} is not the file whose SHA-256 integrity.json has")


def _digest(path: Place) -> str:
    return hashlib.sha256(read_file(path, MAX_METADATA_BYTES)).hexdigest()


def _rank_directories(tensor: int, pipeline: int, expert: int, expert_tensor: int) -> list[str]:
    """Megatron's names: the pipeline and expert ranks appear only where there are several.

    Experts split by another number than the rest go round the tensor-parallel ranks: then not every pair is written.
    """
    pairs = {(r % tensor, r // expert_tensor % expert) for r in range(max(tensor, expert_tensor * expert))}
    return [
        f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "") + (f"_{e:03d}" if expert > 1 else "")
        for t, e in sorted(pairs)
        for p in range(pipeline)
    ]


@lru_cache(maxsize=4096)
def _parallelism(path: Place, _size: int, _mtime_ns: int) -> tuple[int, int, int, int]:
    """(TP, PP, EP, expert TP) from ``args`` in a rank file. Keyed by size and time, so that nothing is read twice."""
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

    tensor = degree("tensor_model_parallel_size", "model_parallel_size")
    expert_tensor = degree("expert_tensor_parallel_size", "tensor_model_parallel_size", "model_parallel_size")
    pipeline, expert = degree("pipeline_model_parallel_size"), degree("expert_model_parallel_size")
    if max(tensor, expert_tensor * expert) * pipeline > MOST_RANKS:
        raise UnsupportedError(
            f"{path}: args ask for TP {tensor}, PP {pipeline}, EP {expert}: no run has so many ranks"
        )
    return tensor, pipeline, expert, expert_tensor


def _torch_pickle(path: Place) -> Any:
    """The objects in a ``torch.save`` file, tensors left out."""
    try:
        with _torch_zip(path) as archive:
            (entry,) = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
            if entry.file_size > MAX_PICKLE_BYTES:
                raise UnsupportedError(f"{path}: its data.pkl has {entry.file_size} bytes, that is no checkpoint's")
            content = archive.read(entry)
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise NotWholeError(f"{path} is not a whole torch.save file ({error})") from error
    try:
        return load_inert(content, tensors=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise NotWholeError(f"{path}: unreadable data.pkl ({type(error).__name__}: {error})") from error


@lru_cache(maxsize=65536)
def _check_zip(path: Place, _size: int, _mtime_ns: int) -> None:
    with _torch_zip(path):
        pass


@contextlib.contextmanager
def _torch_zip(path: Place) -> Iterator[zipfile.ZipFile]:
    """A torch file that was cut short has no zip directory, which stands at its end."""
    try:
        stream = open_file(path)
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing") from error
    with stream:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            stream.seek(0)
            if stream.read(len(_OLD_TORCH)) == _OLD_TORCH:
                raise UnsupportedError(f"{path} was saved by torch before 1.6: load it and save it again") from error
            raise NotWholeError(f"{path} is not a whole torch.save file ({error})") from error
        yield archive


def _check_safetensors(path: Place, size: int) -> None:
    _check_stored_safetensors(path, size) if isinstance(path, StoredPlace) else _check_header(path, size)


@lru_cache(maxsize=65536)
def _check_stored_safetensors(path: StoredPlace, size: int) -> None:
    _check_header(path, size)


def _check_header(path: Place, size: int) -> None:
    """https://huggingface.co/docs/safetensors: 8 bytes of header length, JSON header, then the data to the end."""
    with open_file(path) as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > min(MAX_HEADER_BYTES, size):
            raise NotWholeError(f"{path.name} has no whole header yet")
        header = stream.read(length)
    try:
        ends = [value["data_offsets"][1] for key, value in parse_json(header).items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotWholeError(f"{path.name} has no readable header ({type(error).__name__})") from error
    if size != expected:
        raise NotWholeError(f"{path.name} has {size} bytes, its header says {expected}")


def _json(path: Place) -> Any:
    try:
        return parse_json(read_file(path, MAX_JSON_BYTES))
    except FileNotFoundError as error:
        raise MissingError(f"{path.name} is missing") from error
    except ValueError as error:
        raise NotWholeError(f"{path.name} does not parse") from error
