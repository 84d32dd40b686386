"""What all layouts look like to the mapping: the saved arguments, and tensors under one set of names."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autoeval.convert.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """A Megatron checkpoint's model. ``tensor`` gives the whole tensor, merged over all parallel ranks."""

    path: Path
    layout: str  # Megatron's --ckpt-format
    args: argparse.Namespace

    def names(self) -> frozenset[str]:
        """Canonical names (autoeval.convert.names) of all weights; layer numbers are global."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one weight; raises ``ConversionError`` when it is absent or damaged. It must not be written to."""
        ...


class LastRead(ABC):
    """Keeps the last tensor, no more: the parts of a fused one are asked for one after another, and read once."""

    path: Path

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._last: tuple[str, Tensor] | None = None

    def names(self) -> frozenset[str]:
        return self._names

    def tensor(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            if name not in self._names:
                raise ConversionError(f"{self.path}: the checkpoint has no tensor {name}")
            self._last = None  # before the next is read, so that there is never more than one
            try:
                self._last = (name, self._read(name))
            except (IndexError, RuntimeError, MemoryError) as error:  # shapes that do not go together
                raise ConversionError(f"{self.path}: {name} cannot be put together: {error}") from error
        return self._last[1]

    @abstractmethod
    def _read(self, name: str) -> Tensor:
        """One weight, merged over all ranks; ``name`` is one of ``names()``."""


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` looks like one iteration's directory, whatever it is called."""
    return any((path / mark).is_file() for mark in ("metadata.json", ".metadata")) or any(path.glob("mp_rank_*"))


def open_source(path: Path) -> Source:
    """Open one iteration's directory, deciding its layout as Megatron itself does (``_get_checkpoint_format``)."""
    if not path.is_dir():
        raise ConversionError(f"{path}: no such directory")
    if (path / "metadata.json").is_file():
        from autoeval.convert.torch_dist import TorchDistSource

        return TorchDistSource(path)
    if any(path.glob("mp_rank_*")):
        from autoeval.convert.legacy import LegacySource

        return LegacySource(path)
    if (path / ".metadata").is_file():
        from autoeval.convert.fsdp_dtensor import FsdpDtensorSource

        return FsdpDtensorSource(path)
    raise ConversionError(
        f"{path}: no Megatron checkpoint (expected metadata.json, mp_rank_* directories or .metadata)"
    )


def iteration_directory(directory: Path, iteration: int | None = None) -> Path:
    """``directory`` itself when it is one iteration's, otherwise the one asked for or named by the tracker.

    Raises ``ConversionError`` that says what is not there.
    """
    from autoeval.checkpoints.layout import TRACKER, iteration_of, look_at_tracker

    if not directory.is_dir():
        raise ConversionError(f"{directory}: there is no such directory")
    if is_checkpoint(directory) or iteration_of(directory.name) is not None:
        if iteration is not None and directory.resolve().name != f"iter_{iteration:07d}":
            raise ConversionError(f"{directory}: is not iteration {iteration}")
        return directory
    if iteration is None:
        tracker = look_at_tracker(directory)
        if tracker.value is None:
            why = tracker.problem or f"{directory / TRACKER} is not there"
            raise ConversionError(f"{why}; give --iteration or an iter_ directory")
        if tracker.value == "release":
            return directory / "release"
        iteration = tracker.value
    return directory / f"iter_{iteration:07d}"
