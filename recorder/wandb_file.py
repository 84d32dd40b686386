"""Reading the ``.wandb`` files that the wandb client writes (wandb 0.31 has no reader in Python any more).

Framing, as the LevelDB log has it: after 7 bytes (``:W&B``, a magic number, a version) the file is cut into 32-KiB
blocks. A record is one or several chunks, none crossing a block's end; a chunk is a header of 7 bytes (CRC-32 of type
and content, length, type; little endian) and its content; what is too small for a header at a block's end is zeros.
The records are protocol buffers of wandb's own type ``Record``.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32 * 1024
_MAGIC = b":W&B"
_FILE_HEADER = struct.Struct("<4sHB")
_CHUNK_HEADER = struct.Struct("<IHB")
_DIRECTORY = re.compile(r"run-(?P<time>\d{8}_\d{6})-.*?(?:-(?P<count>\d{1,4}))?$")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbFileError(ValueError):
    """Not a ``.wandb`` file; the message names it."""


@dataclass
class WandbRun:
    """What one ``.wandb`` file holds. Nested keys are dotted. ``finished``: the run's end was written."""

    path: Path
    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)  # name or glob of each define_metric -> its step metric
    hidden: set[str] = field(default_factory=set)
    artifacts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    finished: bool = False


def read_chunks(path: Path | str) -> Iterator[bytes]:
    """The content of each whole record. Ends at the first torn or damaged one: a writer was killed there.

    Raises ``WandbFileError`` when the file doesn't begin like one (one that ends within its header has no records),
    ``OSError``.
    """
    content = Path(path).read_bytes()
    if len(content) < _FILE_HEADER.size and _MAGIC.startswith(content[: len(_MAGIC)]):
        return
    if not content.startswith(_MAGIC):
        raise WandbFileError(f"{path}: is not a .wandb file: it doesn't begin with ':W&B'")
    position = _FILE_HEADER.size
    parts: list[bytes] = []
    while True:
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < _CHUNK_HEADER.size:
            position += left
            continue
        if position + _CHUNK_HEADER.size > len(content):
            return
        checksum, length, kind = _CHUNK_HEADER.unpack_from(content, position)
        position += _CHUNK_HEADER.size
        chunk = content[position : position + length]
        position += length
        if (
            len(chunk) < length
            or not _FULL <= kind <= _LAST
            or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum
        ):
            return
        if kind in (_FULL, _FIRST):
            parts = []
        parts.append(chunk)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def read_wandb_file(path: Path | str) -> WandbRun:
    """Read one run. A torn tail is left out. Raises ``WandbFileError``, ``OSError``."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    new_record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # made when it is imported

    run = WandbRun(Path(path))
    for content in read_chunks(path):
        record = new_record()
        try:
            record.ParseFromString(content)
        except DecodeError as error:
            raise WandbFileError(f"{path}: a record is not wandb's: {error}") from error
        _take(run, record)
    return run


def _take(run: WandbRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.run_id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
        run.group, run.job_type, run.tags = record.run.run_group, record.run.job_type, tuple(record.run.tags)
        run.config.update(_values(record.run.config.update))
    elif kind == "config":
        run.config.update(_values(record.config.update))
    elif kind == "history":
        run.history.append(_values(record.history.item))
    elif kind == "summary":
        run.summary.update(_values(record.summary.update))
        for removed in record.summary.remove:
            run.summary.pop(_key(removed), None)
    elif kind == "metric":
        name = record.metric.name or record.metric.glob_name
        run.metrics[name] = record.metric.step_metric
        if record.metric.options.hidden:
            run.hidden.add(name)
    elif kind == "artifact":
        run.artifacts.append(record.artifact.name)
    elif kind == "files":
        run.files += [file.path for file in record.files.files]
    elif kind == "exit":
        run.finished = True


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _values(items: Any) -> dict[str, Any]:
    return {_key(item): json.loads(item.value_json) for item in items if item.value_json}


def wandb_files(wandb_dir: Path | str, run_id: str | None = None) -> list[Path]:
    """The ``.wandb`` files below ``wandb_dir`` (``<work_dir>/wandb``), or those of one id, in the order of their runs."""
    pattern = "*run-*" if run_id is None else f"*run-*-{run_id}*"
    return [
        path
        for directory in sorted(Path(wandb_dir).glob(pattern), key=_begun)
        if not directory.is_symlink()
        for path in sorted(directory.glob("*.wandb"))
    ]


def read_runs(wandb_dir: Path | str, run_id: str | None = None) -> list[WandbRun]:
    """All runs below ``wandb_dir``, or those of one id, in the order of their beginning. Raises as its files do."""
    runs = [read_wandb_file(path) for path in wandb_files(wandb_dir, run_id)]
    return [run for run in runs if run_id is None or run.run_id == run_id]


def _begun(directory: Path) -> tuple[str, int, str]:
    """Order of ``offline-run-YYYYMMDD_HHMMSS-ID[-N]``: N counts runs of one id that began in the same second."""
    found = _DIRECTORY.search(directory.name)
    return (found["time"], int(found["count"] or 0), directory.name) if found else ("", 0, directory.name)
