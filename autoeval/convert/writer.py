"""Writes safetensors in one pass: memory holds one tensor and a few chunks, whatever the model's size.

Format: 8 bytes little-endian length, a JSON header with dtype, shape and byte range of each tensor, then the bytes
(huggingface.co/docs/safetensors). The header follows from the planned shapes, so that every tensor goes straight to its
place. Shards and their index are named as ``save_pretrained`` names them.

One thread reads, maps and checks the next chunks while the caller's thread hashes and writes, and a third lets the disk
begin early, so that the last ``fsync`` has little left to wait for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import xxhash

from autoeval.convert.errors import BadWeights, ConversionError, OutputError
from recorder.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 50 * 1000**3  # save_pretrained's default since transformers 5
DTYPES = ("float32", "bfloat16", "float16")
_CODES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
_CHUNK = 8 * 1024**2
_AHEAD = 8
# A tensor above this is not kept alive by its last chunks while the next one is read.
_LARGE = 256 * 1024**2
_SYNC_EVERY = 128 * 1024**2
_EDGE = 4096
_END: Any = object()

Progress = Callable[[int, int], None]


class Receiver(Protocol):
    """Takes a model's tensors while they are written: who wants them at once need not read them back.

    ``begin``: configuration and tokenizer are in ``directory``, tensors of these ``shapes`` follow; false: they are not
    wanted. ``take``: the next bytes of tensor ``name``, stored as ``dtype``. ``end``: all were given, and the source
    is as it was at the beginning; the files are not on the disk yet.
    """

    def begin(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool: ...

    def take(self, name: str, dtype: str, content: memoryview) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Planned:
    """A tensor to be written; ``read`` gives it, in any floating dtype, when its turn comes. ``dtype`` is set where it
    is not the model's."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    dtype: str | None = None

    def bytes_as(self, dtype: str) -> int:
        """Its size in a model of ``dtype``."""
        return math.prod(self.shape) * _CODES[self.dtype or dtype][1]


@dataclass(frozen=True)
class Written:
    """``digests`` has an XXH3-128 per tensor, ``edges`` one of its first and last 4096 bytes."""

    files: tuple[str, ...]
    digests: dict[str, str]
    edges: dict[str, str]


def checksum(digests: dict[str, str]) -> str:
    """One over all tensors' digests, in order of name: how the tensors were sharded makes no difference."""
    joined = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return "xxh3:" + hashlib.sha256(joined.encode()).hexdigest()


def size_of(tensors: Sequence[Planned], dtype: str) -> int:
    """Bytes of the tensors as ``dtype``."""
    return sum(tensor.bytes_as(dtype) for tensor in tensors)


def write_model(
    directory: Path,
    tensors: Sequence[Planned],
    dtype: str,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    receiver: Receiver | None = None,
) -> Written:
    """Write all tensors as ``dtype``; ``progress`` is called with bytes done and bytes in all.

    Raises ``BadWeights`` for a NaN or an infinite weight, ``ConversionError`` for a tensor of another shape than planned
    and ``OutputError`` naming the file that could not be written.
    """
    shards = _shards(tensors, dtype, max_shard_bytes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    )
    total, done = size_of(tensors, dtype), 0
    dtypes = {tensor.name: tensor.dtype or dtype for tensor in tensors}
    digests: dict[str, str] = {}
    edges: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        with _ShardFile(directory / name) as file, closing(_ahead(_read_all(shard, dtype), _AHEAD)) as pieces:
            file.write(_header(shard, dtype))
            for tensor, group in groupby(pieces, key=itemgetter(0)):
                digest, stored = _Digest(), dtypes[tensor]
                for _, chunk in group:
                    digest.update(chunk)
                    if receiver:
                        receiver.take(tensor, stored, chunk)
                    file.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
                digests[tensor], edges[tensor] = digest.whole.hexdigest(), digest.edges()
            if receiver and shard is shards[-1]:
                receiver.end()  # before the disk is waited for
    if len(shards) > 1:
        places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(directory / "model.safetensors.index.json", index)
    return Written(tuple(names), digests, edges)


def check_layout(directory: Path, planned: Sequence[Planned], written: Written, dtype: str) -> None:
    """Open every shard with the safetensors library, as each later reader will; ``ConversionError`` for a difference.

    The library checks that the header's ranges fill the file exactly. Here every tensor's name, shape, dtype and first
    and last bytes are compared with what was written: a misplaced, missing or never-written range shows. Every byte is
    compared only by ``file_digests``: just after writing it would come from memory, not from the disk.
    """
    found: set[str] = set()
    expected = {tensor.name: (tensor.shape, f"torch.{tensor.dtype or dtype}") for tensor in planned}
    for file, name, tensor in _stored(directory, written.files):
        if (tuple(tensor.shape), str(tensor.dtype)) != expected.get(name):
            raise ConversionError(f"{file}: {name} is {tensor.dtype} {tuple(tensor.shape)}, which was not planned")
        content = raw(tensor)
        if _edges(bytes(content[:_EDGE]), bytes(content[-_EDGE:])) != written.edges[name]:
            raise ConversionError(f"{file}: {name} read back differs from what was written")
        found.add(name)
    if missing := set(written.digests) - found:
        raise ConversionError(f"{directory}: not in any shard: {', '.join(sorted(missing)[:3])}")


def file_digests(directory: Path) -> dict[str, str]:
    """XXH3-128 of every tensor in the directory's safetensors files, every byte read."""
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    return {name: xxhash.xxh3_128_hexdigest(raw(tensor)) for _, name, tensor in _stored(directory, files)}


def raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes, shared with it when it is contiguous."""
    import torch

    array: Any = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def chunks_of(planned: Planned, dtype: str) -> Iterator[Tensor]:
    """The tensor as ``dtype`` in contiguous pieces along its first axis, each seen to be finite."""
    import torch

    tensor, dtype = planned.read(), planned.dtype or dtype
    if tuple(tensor.shape) != planned.shape:
        raise ConversionError(f"{planned.name} has the shape {tuple(tensor.shape)}, expected {planned.shape}")
    copy = tensor.untyped_storage().nbytes() > _LARGE
    if tensor.dim() == 0 or tensor.is_contiguous():
        tensor = tensor.reshape(-1)
    target, width = getattr(torch, dtype), _CODES[dtype][1]
    rows = max(1, _CHUNK // max(1, math.prod(tensor.shape[1:]) * width))
    for piece in tensor.split(rows):
        piece = piece.to(target, copy=copy).contiguous()
        # A sum is the cheapest pass that a NaN or an infinity cannot hide from; one that overflows is looked at again.
        if not math.isfinite(float(piece.sum())) and not bool(torch.isfinite(piece).all()):
            raise BadWeights(f"{planned.name} has NaN or infinite weights (as {dtype})")
        yield piece


@dataclass
class _Digest:
    whole: Any = field(default_factory=xxhash.xxh3_128)
    _head: bytes = b""
    _tail: bytes = b""

    def update(self, content: memoryview) -> None:
        self.whole.update(content)
        if len(self._head) < _EDGE:
            self._head += bytes(content[: _EDGE - len(self._head)])
        self._tail = (self._tail + bytes(content[-_EDGE:]))[-_EDGE:]

    def edges(self) -> str:
        return _edges(self._head, self._tail)


def _edges(head: bytes, tail: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(head + tail)


class _ShardFile:
    """A file written from start to end whose bytes are on the disk when it is closed without an error."""

    def __init__(self, path: Path):
        self._path = path
        self._unsynced = 0
        self._syncing: Future[None] | None = None

    def __enter__(self) -> _ShardFile:
        self._syncer = ThreadPoolExecutor(1)
        try:
            self._stream = self._path.open("wb", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[self._stream.write(view) :]
            self._unsynced += len(content)
            if self._unsynced >= _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
                self._begin_sync()
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        try:
            if kind is None:
                self._begin_sync()
                assert self._syncing
                self._syncing.result()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._syncer.shutdown()
            self._stream.close()

    def _begin_sync(self) -> None:
        if self._syncing is not None:
            self._syncing.result()  # an error of the last one must not be lost
        self._unsynced = 0
        self._syncing = self._syncer.submit(os.fsync, self._stream.fileno())

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"{self._path}: cannot be written: {error.strerror or error}")


def _read_all(shard: Sequence[Planned], dtype: str) -> Iterator[tuple[str, memoryview]]:
    for tensor in shard:
        for piece in chunks_of(tensor, dtype):
            yield tensor.name, raw(piece)


def _ahead(items: Iterator[Any], count: int) -> Generator[Any, None, None]:
    """The items, made by one other thread that is at most ``count`` ahead.

    It uses no further threads of PyTorch's: the pieces are small, and waiting for one another on a machine that trains
    or evaluates beside this cost up to four times the conversion (benchmarks/convert.py).
    """
    import torch

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = deque(pool.submit(next, items, _END) for _ in range(count))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, items, _END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # for threads to come


def _stored(directory: Path, files: Sequence[str]) -> Iterator[tuple[Path, str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(directory / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    yield directory / file, name, stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"{directory / file}: cannot be read back: {error}") from error


def _shards(tensors: Sequence[Planned], dtype: str, limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        length = tensor.bytes_as(dtype)
        if shards[-1] and size + length > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += length
    return shards


def _header(shard: Sequence[Planned], dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end, code = offset + tensor.bytes_as(dtype), _CODES[tensor.dtype or dtype][0]
        entries[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # aligned, as the format recommends
    return len(header).to_bytes(8, "little") + header
