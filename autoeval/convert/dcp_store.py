"""The tensors and objects of a PyTorch distributed checkpoint (DCP), read slice by slice without DCP.

Each stored item is a ``torch.save`` blob at an offset of a ``.distcp`` file; ``.metadata`` says where. Only what is
asked for is read. Format: shared/reference/megatron.md, section 3.2.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints.dcp_metadata import DcpMetadataError, StoredItem, TensorInfo, parse_dcp_metadata
from autoeval.convert.errors import ConversionError
from autoeval.convert.safe_load import inside, load_restricted
from autoeval.convert.stored import DTYPES, Stored, join

if TYPE_CHECKING:
    from torch import Tensor

Index = tuple[int, ...]


class DcpStore:
    """``tensors`` has every stored tensor; their claims are checked against the files before they are believed."""

    def __init__(self, path: Path):
        self.path = path
        file = inside(path, ".metadata")
        try:
            metadata = parse_dcp_metadata(file.read_bytes(), name=str(file))
        except (DcpMetadataError, OSError) as error:
            raise ConversionError(str(error)) from error
        self.tensors: dict[str, TensorInfo] = metadata.tensors
        self._items: dict[str, list[StoredItem]] = defaultdict(list)
        for item in metadata.items:
            self._items[item.key].append(item)
        self._files = {name: inside(path, name) for name in metadata.file_sizes()}
        self._check_lengths(metadata.items)
        # (key, number of leading axes that an index fixes) -> index -> the items that hold a part of it
        self._holders: dict[tuple[str, int], dict[Index, list[StoredItem]]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def object(self, key: str) -> Any:
        """A stored object that is not a tensor, for example the training arguments."""
        item = self._items[key][0]
        return self._load(item)

    def check_extent(self, key: str) -> None:
        """The stored bytes must account for the tensor before memory, or a name per layer, is set aside for it."""
        info = self.tensors[key]
        if info.dtype not in DTYPES:
            raise ConversionError(f"{self.path}: {key} is stored as {info.dtype}, expected one of {', '.join(DTYPES)}")
        needed = math.prod(info.shape) * (4 if info.dtype == "float32" else 2)
        stored = sum(item.length for item in self._items[key])
        if not 0 < needed <= stored:
            raise ConversionError(f"{self.path}: {key} of shape {info.shape} needs {needed} bytes, {stored} are stored")

    def read(self, places: list[tuple[str, Index]]) -> Tensor:
        """The tensors ``key[index]`` of all places, one after another along the first axis that is left."""
        shapes = [self.tensors[key].shape[len(index) :] for key, index in places]
        if len({shape[1:] for shape in shapes}) != 1:
            raise ConversionError(f"{self.path}: {places[0][0]} and its other half have the shapes {shapes}")
        parts, begin = [], 0
        for (key, index), shape in zip(places, shapes, strict=True):
            for place, part in self._parts(key, index):
                first = place[0]
                parts.append(((slice(begin + first.start, begin + first.stop), *place[1:]), part))
            begin += shape[0]
        return join(parts, (begin, *shapes[0][1:]), f"{self.path}: {places[0][0]}")

    def _parts(self, key: str, index: Index) -> Iterator[tuple[tuple[slice, ...], Stored]]:
        depth = len(index)
        for item in self._holding(key, depth).get(index, ()):
            assert item.offsets is not None and item.sizes is not None
            loaded, file = self._load(item), self._files[item.file]
            stored = Stored.of(loaded, file, item.offset, key)
            if stored.shape != item.sizes or stored.dtype != self.tensors[key].dtype:
                raise ConversionError(
                    f"{file}: {key} holds {stored.dtype} {stored.shape}, expected {self.tensors[key].dtype} {item.sizes}"
                )
            local = tuple(i - o for i, o in zip(index, item.offsets, strict=False))
            place = tuple(slice(o, o + s) for o, s in zip(item.offsets[depth:], item.sizes[depth:], strict=True))
            yield place, stored[local]

    def _holding(self, key: str, depth: int) -> dict[Index, list[StoredItem]]:
        """Looked up once per key: with thousands of experts a search per tensor would take longer than reading it."""
        if (key, depth) not in self._holders:
            holders: dict[Index, list[StoredItem]] = defaultdict(list)
            for item in self._items[key]:
                assert item.offsets is not None and item.sizes is not None
                if 0 in item.sizes:
                    continue
                ranges = (range(o, o + s) for o, s in zip(item.offsets[:depth], item.sizes[:depth], strict=True))
                for index in itertools.product(*ranges):
                    holders[index].append(item)
            self._holders[key, depth] = holders
        return self._holders[key, depth]

    def _load(self, item: StoredItem) -> Any:
        file = self._files[item.file]
        if item.transforms:
            raise ConversionError(f"{file}: {item.key} is stored through {item.transforms}: unsupported")
        return load_restricted(file, offset=item.offset, length=item.length, name=f"{file} ({item.key})")

    def _check_lengths(self, items: tuple[StoredItem, ...]) -> None:
        """Items do not overlap, so all of a file's together cannot be longer than it: no claim exceeds the disk."""
        claimed: dict[str, int] = defaultdict(int)
        for item in items:
            claimed[item.file] += item.length
        sizes = {name: file.stat().st_size for name, file in self._files.items()}
        for item in items:
            size = sizes[item.file]
            if item.offset + item.length > size or claimed[item.file] > size:
                raise ConversionError(
                    f"{self._files[item.file]}: has {size} bytes, .metadata says that {item.key} is at {item.offset} to "
                    f"{item.offset + item.length} and all items take {claimed[item.file]}: the file is torn"
                )
