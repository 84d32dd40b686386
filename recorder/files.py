"""Writing files so that a reader never sees half of one, whatever dies in between."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write ``content`` to ``path``: temporary name in the same directory, fsync, rename, fsync of the directory.

    The directory is made when it is missing. Raises ``OSError`` as the file system reports it; then the old
    file, if any, is still there untouched.
    """
    path = Path(path)
    write_together(path.parent, {path.name: content})


def write_together(directory: Path, contents: Mapping[str, str | bytes]) -> None:
    """``write_atomic`` of several files of one directory, which is synced once, after the last of them.

    Each file is whole or not there; which of them are there after a crash is not certain before this returns.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _write_and_rename(directory / name, content.encode("utf-8") if isinstance(content, str) else content)
    sync_directory(directory)


def _write_and_rename(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes 0600; results are for the whole team to read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any, *, indent: int | None = 1) -> None:
    """``write_atomic`` of ``value`` as JSON; NaN and infinities are refused (``ValueError``), they are not JSON."""
    write_atomic(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def sync_directory(directory: Path) -> None:
    """Make a rename inside ``directory`` durable (POSIX asks for an fsync of the directory itself)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
