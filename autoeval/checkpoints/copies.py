"""What says that a directory here is a copy of a checkpoint in a store: a JSON file beside it, ``<directory>.copy.json``.

It has the checkpoint's URL and fingerprint and, once all files have arrived, their sizes and times here: a copy in which
any of them is another is no copy any more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from recorder.files import write_json
from recorder.untrusted import parse_json, read_regular

SUFFIX = ".copy.json"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Origin:
    """``files``: name -> (size in bytes, mtime_ns) here; empty until the copy is whole."""

    url: str
    fingerprint: str
    iteration: int
    format: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return bool(self.files)


def note_origin(directory: Path, origin: Origin) -> None:
    files = {name: list(mark) for name, mark in origin.files.items()}
    write_json(_beside(directory), {**origin.__dict__, "files": files}, indent=None)


def read_origin(directory: Path) -> Origin | None:
    """``None`` for a directory that is no copy."""
    try:
        content = parse_json(read_regular(_beside(directory), _MOST_BYTES))
        files = {str(name): (int(size), int(ns)) for name, (size, ns) in content["files"].items()}
        return Origin(content["url"], content["fingerprint"], int(content["iteration"]), content["format"], files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def fingerprint_of(directory: Path) -> str | None:
    """That of the checkpoint of which ``directory`` is a whole, untouched copy; ``None`` when it is no copy.

    Raises ``OSError`` when the directory, or a file, is gone.
    """
    origin = read_origin(directory)
    if origin is None:
        return None
    if not origin.whole:
        return "copy not whole"
    for name, (size, mtime_ns) in origin.files.items():
        found = (directory / name).stat()
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            return f"copy changed: {name}"
    return origin.fingerprint


def marks_of(directory: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    """``Origin.files`` as they are now. Raises ``OSError``."""
    found = {name: (directory / name).stat() for name in names}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def remove_copy(directory: Path) -> None:
    """The mark first: half a directory is never taken for a copy."""
    _beside(directory).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def copies_in(staging: Path) -> list[Path]:
    """The directories below ``staging`` that are, or were to be, copies."""
    if not staging.is_dir():
        return []
    named = {staging / path.name.removesuffix(SUFFIX) for path in staging.glob(f"*{SUFFIX}")}
    return sorted(named | {path for path in staging.iterdir() if path.is_dir()})


def _beside(directory: Path) -> Path:
    return directory.with_name(directory.name + SUFFIX)
