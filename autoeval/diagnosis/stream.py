"""A log file read from where it was left, in pieces that end at line ends; memory does not grow with the file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recorder.untrusted import open_regular

PIECE = 4 << 20  # bytes read at once
LONGEST_LINE = 16 << 20  # a "line" beyond this is no log line; it is cut, so that memory stays bounded
HEAD = 1024  # bytes at the start by which a file is known again

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*\x07")


@dataclass
class Position:
    """How far a log has been read. ``head`` is a hash of the first ``head_bytes`` bytes."""

    offset: int = 0
    inode: int = 0
    head: str = ""
    head_bytes: int = 0
    beginnings: int = 0  # how often the file was another one, and read from its start again


def read_new(path: Path, position: Position, *, to_the_end: bool) -> Iterator[bytes]:
    """What was written to ``path`` since ``position``, which moves on with each piece that is taken.

    Pieces are whole lines. A last line without its end is left for the next call, or given too with ``to_the_end``.
    A file that is another one now (rotated), shorter, or has another beginning (rewritten) is read from its start;
    of a rotated one the rest is read first, when it lies beside it under its name with ``.1``. Raises ``OSError``.
    """
    if position.inode and _is_another(path, position):
        rotated = path.with_name(path.name + ".1")
        if rotated.is_file() and rotated.stat().st_ino == position.inode:
            yield from _pieces(rotated, position, to_the_end=True)
        position.offset, position.head, position.head_bytes = 0, "", 0
        position.beginnings += 1
    yield from _pieces(path, position, to_the_end=to_the_end)


def clean(text: bytes) -> bytes:
    """Without terminal colours; carriage returns (progress bars) are line ends."""
    if b"\x1b" in text:
        text = _ANSI.sub(b"", text)
    if b"\r" in text:
        text = text.replace(b"\r", b"\n")
    return text


def _pieces(path: Path, position: Position, *, to_the_end: bool) -> Iterator[bytes]:
    with open_regular(path) as stream:
        position.inode = os.fstat(stream.fileno()).st_ino
        if position.head_bytes < HEAD:
            head = stream.read(HEAD)
            position.head, position.head_bytes = _hash(head), len(head)
        stream.seek(position.offset)
        kept = b""
        while block := stream.read(PIECE):
            text = kept + block
            end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            if end == 0 and len(text) > LONGEST_LINE:
                end = len(text)
            kept = text[end:]
            if end:
                position.offset += end
                yield clean(text[:end])
        if kept and to_the_end:
            position.offset += len(kept)
            yield clean(kept) + b"\n"


def _is_another(path: Path, position: Position) -> bool:
    status = path.stat()
    if status.st_ino != position.inode or status.st_size < position.offset:
        return True
    with path.open("rb") as stream:
        return _hash(stream.read(position.head_bytes)) != position.head


def _hash(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()[:16]
