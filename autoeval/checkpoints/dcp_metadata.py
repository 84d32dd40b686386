"""Reads ``.metadata`` of a PyTorch distributed checkpoint (DCP) without torch and without running anything.

The file is a pickle of ``torch.distributed.checkpoint.metadata.Metadata`` (Megatron adds ``all_local_plans``). PyTorch
itself loads it with a plain ``pickle.load``, which runs whatever the file says. Here every class and function that the
pickle names becomes an inert record that only remembers what it was given; nothing is imported, nothing is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoeval.checkpoints.inert_pickle import Inert, load_inert
from recorder.untrusted import read_regular

MAX_METADATA_BYTES = 4 << 30  # thousands of ranks, each with its plan, make hundreds of megabytes
# What DCP and Megatron pickle there: packages, and single names of the standard library.
_NAMES = frozenset(
    {"torch", "megatron", "numpy", "nvidia_resiliency_ext", "pathlib"}
    | {"collections.OrderedDict", "collections.defaultdict", "copyreg._reconstructor", "_codecs.encode"}
    # getattr, inert like the others, is how Python 3.11.0 to 3.11.3 pickles the members of an enum
    | {
        f"builtins.{name}"
        for name in ("dict", "list", "tuple", "set", "frozenset", "slice", "object", "bytearray", "getattr")
    }
)


class DcpMetadataError(ValueError):
    """The file is not the metadata of a DCP checkpoint: torn, of another kind, or not to be trusted."""


@dataclass(frozen=True)
class TensorInfo:
    """The whole (global) tensor. ``dtype`` is torch's name without the module: ``bfloat16``, ``float32``."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StoredItem:
    """One blob: bytes ``offset`` to ``offset + length`` of ``file``, written by ``torch.save``.

    A ``tensor`` item holds the part of ``key`` that begins at ``offsets`` and extends over ``sizes``; a ``bytes`` item
    holds any pickled object and has neither. ``transforms`` names stream transforms (compression).
    """

    key: str
    kind: Literal["tensor", "bytes"]
    offsets: tuple[int, ...] | None
    sizes: tuple[int, ...] | None
    file: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


@dataclass(frozen=True)
class DcpMetadata:
    """What is stored where. ``items`` are in the file's order; ``tensors`` has every tensor key."""

    tensors: dict[str, TensorInfo]
    items: tuple[StoredItem, ...]

    def file_sizes(self) -> dict[str, int]:
        """Least size in bytes that each storage file must have to hold its items."""
        sizes: dict[str, int] = {}
        for item in self.items:
            sizes[item.file] = max(sizes.get(item.file, 0), item.offset + item.length)
        return sizes


def read_dcp_metadata(path: Path | str) -> DcpMetadata:
    """Read a ``.metadata`` file (``path`` may also be the checkpoint's directory).

    Raises ``OSError`` when it cannot be read and ``DcpMetadataError`` when it is not valid.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ".metadata"
    return parse_dcp_metadata(read_regular(path, MAX_METADATA_BYTES), name=str(path))


def parse_dcp_metadata(content: bytes, *, name: str = ".metadata") -> DcpMetadata:
    """``read_dcp_metadata`` of bytes; ``name`` is for error messages."""
    try:
        root = load_inert(content, names=_NAMES)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DcpMetadataError(f"{name}: not a readable pickle ({type(error).__name__}: {error})") from error
    try:
        state = _fields(root, "Metadata")
        described = state["state_dict_metadata"]
        stored = state["storage_data"]
        if not isinstance(described, dict) or not isinstance(stored, dict):
            raise DcpMetadataError("state_dict_metadata and storage_data must be dicts")
        chunks = {key: _Chunks(key, value) for key, value in described.items() if _is_tensor(key, value)}
        items = tuple(_items(stored, chunks, described))
    except (KeyError, TypeError, AttributeError, IndexError, DcpMetadataError) as error:
        raise DcpMetadataError(f"{name}: {error}; expected torch.distributed.checkpoint Metadata") from error
    return DcpMetadata(tensors={key: value.info for key, value in chunks.items()}, items=items)


def _class_name(value: Any) -> str:
    """Last part of the class an inert instance stands for; Megatron's subclasses keep the name's ending."""
    return value.qualified_name.rpartition(".")[2] if isinstance(value, Inert) else type(value).__name__


def _fields(value: Any, ending: str) -> dict[str, Any]:
    """The attributes of an inert dataclass instance whose class name ends in ``ending``."""
    if not isinstance(value, Inert) or not _class_name(value).endswith(ending):
        raise DcpMetadataError(f"found {_class_name(value)} where {ending} belongs")
    state = value.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0] or state[1], dict):
        state = {**(state[0] or {}), **(state[1] or {})}  # (attributes, slots)
    if not isinstance(state, dict):
        raise DcpMetadataError(f"{_class_name(value)} has no attributes")
    return state


def _is_tensor(key: Any, value: Any) -> bool:
    if not isinstance(key, str):
        raise DcpMetadataError(f"key {key!r} is not a string")
    kind = _class_name(value)
    if kind not in ("TensorStorageMetadata", "BytesStorageMetadata"):
        raise DcpMetadataError(f"key {key!r} is described by {kind}")
    return kind == "TensorStorageMetadata"


def _extent(value: Any, what: str, key: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or set(map(type, value)) - {int} or min(value, default=0) < 0:
        raise DcpMetadataError(f"{what} of {key!r} is {value!r}, expected non-negative integers")
    return tuple(value)


class _Chunks:
    """The pieces of one tensor, by where they begin."""

    def __init__(self, key: str, described: Any):
        state = _fields(described, "TensorStorageMetadata")
        shape = _extent(state["size"], "size", key)
        self.info = TensorInfo(shape, _dtype(key, state["properties"]))
        self.sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        for chunk in state["chunks"]:
            fields = _fields(chunk, "ChunkStorageMetadata")
            offsets = _extent(fields["offsets"], "chunk offsets", key)
            sizes = _extent(fields["sizes"], "chunk sizes", key)
            rank_differs = len(offsets) != len(shape) or len(sizes) != len(shape)
            if rank_differs or any(o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)):
                raise DcpMetadataError(f"a chunk of {key!r} ({offsets} + {sizes}) is outside its shape {shape}")
            self.sizes[offsets] = sizes


def _dtype(key: str, properties: Any) -> str:
    """``TensorProperties`` keeps its state as a tuple (dtype, layout, …), older ones as a dict."""
    state = properties.state if isinstance(properties, Inert) else None
    dtype = state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None
    qualified = getattr(dtype, "qualified_name", "") if isinstance(dtype, type) else ""
    if not qualified.startswith("torch."):
        raise DcpMetadataError(f"{key!r} has no torch dtype")
    return qualified.removeprefix("torch.")


def _items(stored: dict[Any, Any], chunks: dict[str, _Chunks], described: dict[str, Any]) -> Iterator[StoredItem]:
    for index, where in stored.items():
        at = _fields(index, "MetadataIndex")
        key = at["fqn"]
        if key not in described:
            raise DcpMetadataError(f"stored item {key!r} is not described")
        place = _fields(where, "_StorageInfo")
        file, offset, length = place["relative_path"], place["offset"], place["length"]
        if not _is_plain_name(file):
            raise DcpMetadataError(f"{key!r} is stored in {file!r}, expected a file name without a path")
        (offset, length) = _extent((offset, length), "place", key)
        transforms = tuple(str(t) for t in place.get("transform_descriptors") or ())
        if key not in chunks:
            yield StoredItem(key, "bytes", None, None, file, offset, length, transforms)
            continue
        pieces = chunks[key].sizes
        begins = at.get("offset")
        if begins is None and len(pieces) == 1:
            begins = next(iter(pieces))
        begins = _extent(begins, "offset of an item", key)
        if begins not in pieces:
            raise DcpMetadataError(f"{key!r} has a stored item at {begins} but no chunk begins there")
        yield StoredItem(key, "tensor", begins, pieces[begins], file, offset, length, transforms)


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and file not in (".", "..") and not set(file) & set("/\\\0")
