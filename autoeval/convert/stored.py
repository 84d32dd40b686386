"""Tensors that are still in their file: where each begins, how it is laid out, and how several are joined while read.

A tensor is read with ``pread`` straight into its place in the result: one copy, no memory map (a training run that
saves again truncates the very file that is being read: a map would kill the process, a read ends in an error).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.buffers import empty
from autoeval.convert.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16")
_RECORD = b"PK\3\4"  # begins a local file header: 30 bytes with the lengths of name and extra field at 26, then these
_READ_BYTES = 1 << 30  # one read call gives at most 2 GiB


@dataclass(frozen=True)
class Stored:
    """``layout`` is a meta tensor, any view of the storage whose first byte is byte ``begin`` of ``file``."""

    file: Path
    begin: int
    layout: Tensor

    @classmethod
    def of(cls, loaded: Any, file: Path, blob: int, name: str) -> Stored:
        """``loaded`` by ``load_restricted`` from a ``torch.save`` blob that begins at byte ``blob`` of ``file``."""
        import torch

        if not isinstance(loaded, torch.Tensor):
            raise ConversionError(f"{file}: {name} is {type(loaded).__name__}, expected a tensor")
        strided = loaded.layout == torch.strided and loaded.device.type == "meta" and not loaded.is_quantized
        offset = getattr(loaded.untyped_storage(), "_checkpoint_offset", None) if strided else None
        if offset is None:
            raise ConversionError(f"{file}: {name} is not a plain tensor with its bytes in this file")
        return cls(file, blob + offset, loaded.detach())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layout.shape)

    @property
    def dtype(self) -> str:
        return str(self.layout.dtype).removeprefix("torch.")

    def view(self, change: Callable[[Tensor], Tensor]) -> Stored:
        """The same bytes seen otherwise: ``change`` must give a view."""
        return replace(self, layout=change(self.layout))

    def __getitem__(self, index: Any) -> Stored:
        return replace(self, layout=self.layout[index])

    def read(self) -> Tensor:
        return join([((), self)], self.shape, str(self.file))

    def sample(self) -> bytes:
        """Shape, dtype, and the first and last 4 KiB of the tensor's bytes: enough to tell copies from others."""
        import torch

        described = f"{self.dtype} {self.shape} ".encode()
        axes = sorted(range(self.layout.dim()), key=self.layout.stride, reverse=True)  # as the memory has them
        ordered = self.view(lambda layout: layout.permute(axes))
        if not ordered.layout.is_contiguous():
            return described + ordered.read().view(-1).view(torch.uint8).numpy().tobytes()
        flat, count = ordered.view(lambda layout: layout.view(-1)), min(self.layout.numel(), 1024)
        ends = (flat[:count], flat[flat.layout.numel() - count :])
        return described + b"".join(end.read().view(torch.uint8).numpy().tobytes() for end in ends)

    def read_into(self, target: Tensor) -> None:
        """``target`` has this shape and dtype. Raises ``ConversionError`` when the file ends too early."""

        layout = self.layout
        if layout.is_contiguous() and target.is_contiguous():
            self._read(target)
            return
        span = 1 + sum((size - 1) * stride for size, stride in zip(layout.shape, layout.stride(), strict=True))
        if span < layout.numel():
            raise ConversionError(f"{self.file}: a tensor of shape {self.shape} is stored in {span} elements")
        self._check_end(span)
        raw = empty((span,), layout.dtype)
        self._read(raw)
        target.copy_(raw.as_strided(layout.shape, layout.stride()))

    def _read(self, target: Tensor) -> None:
        """Fill ``target``, contiguous, from the bytes where this view begins."""
        import torch

        raw: Any = target.view(-1).view(torch.uint8).numpy()
        buffer, done = memoryview(raw), 0
        offset = self.begin + int(self.layout.storage_offset()) * self.layout.element_size()
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._check_record(descriptor)
                while done < len(buffer):
                    count = os.preadv(descriptor, [buffer[done : done + _READ_BYTES]], offset + done)
                    if count == 0:
                        raise ConversionError(f"{self.file}: ends inside a tensor: the file is torn")
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConversionError(f"{self.file}: {error.strerror}") from error

    def _check_record(self, descriptor: int) -> None:
        """PyTorch computes where a zip record's bytes begin; the record's own header, which ends there, must agree."""
        for span in (512, 1 << 17):  # an ordinary header, and the longest that the format allows
            start = max(0, self.begin - span)
            before = os.pread(descriptor, self.begin - start, start)
            at = before.rfind(_RECORD, 0, len(before) - 26)
            while at >= 0:
                if at + 30 + sum(struct.unpack_from("<HH", before, at + 26)) == len(before):
                    return
                at = before.rfind(_RECORD, 0, at)
        raise ConversionError(
            f"{self.file}: no record of the zip begins at byte {self.begin}, where a tensor should be"
        )

    def _check_end(self, elements: int) -> None:
        """Before memory is set aside: a file can claim any size."""
        width = self.layout.element_size()
        end = self.begin + (self.layout.storage_offset() + elements) * width
        try:
            size = self.file.stat().st_size
        except OSError as error:
            raise ConversionError(f"{self.file}: {error.strerror}") from error
        if end > size:
            raise ConversionError(f"{self.file}: a tensor of shape {self.shape} ends at byte {end}, the file at {size}")


def join(parts: Iterable[tuple[tuple[slice, ...], Stored]], shape: tuple[int, ...], name: str) -> Tensor:
    """A tensor of ``shape`` made of ``parts``, each with its place in it. What no part fills is NaN, so that the check
    for finite weights sees a hole. ``name`` is for error messages."""

    parts = list(parts)
    if not parts:
        raise ConversionError(f"{name}: nothing of it is stored")
    if len(kinds := {part.dtype for _, part in parts}) > 1 or not kinds <= set(DTYPES):
        raise ConversionError(f"{name} is stored as {', '.join(sorted(kinds))}, expected one of {', '.join(DTYPES)}")
    for _, part in parts:
        part._check_end(part.layout.numel())
    whole = empty(shape, parts[0][1].layout.dtype)
    if len(parts) > 1 or parts[0][1].shape != shape:
        whole.fill_(float("nan"))
    for place, part in parts:
        target = whole[place]
        if tuple(target.shape) != part.shape:
            raise ConversionError(f"{name}: a part of shape {part.shape} does not fit into {tuple(target.shape)}")
        part.read_into(target)
    return whole


def stack(parts: Iterable[Stored], axis: int, name: str) -> Tensor:
    """``parts`` one after another along ``axis``, as ``torch.cat`` but read straight into place."""
    placed: list[tuple[tuple[slice, ...], Stored]] = []
    end = 0
    for part in parts:
        placed.append(((slice(None),) * axis + (slice(end, end + part.shape[axis]),), part))
        end += part.shape[axis]
    shape = placed[0][1].shape
    return join(placed, (*shape[:axis], end, *shape[axis + 1 :]), name)
