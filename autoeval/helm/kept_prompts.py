"""Which files of ``<output_path>/prompts`` go: those that nobody can use, and those that nobody has used for long.

Several daemons may share the directory. A file is read whole and at once, and one that is gone is built anew, so that
removing it is never wrong, only a waste when somebody would have wanted it. Imports no HELM.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

UNUSED_DAYS = 30  # a file that no run has used for so long is removed
MOST_BYTES = 4 << 30  # of all; beyond, what was used longest ago goes first,
USED_LATELY_DAYS = 1  # but nothing that a run has used since
_DAY = 86400.0

NO_DATA = hashlib.sha256().hexdigest()  # the stamp of a scenario that reads no files

_LOGGER = logging.getLogger("autoeval.helm")


def mark_used(path: Path) -> None:
    """A file's time of modification is when it was used last, to the day."""
    with contextlib.suppress(OSError):  # gone, or somebody else's: then it has the time that it has
        if time.time() - path.stat().st_mtime > USED_LATELY_DAYS * _DAY / 4:
            os.utime(path)


def prune(output_path: Path, most_bytes: int = MOST_BYTES) -> list[Path]:
    """Remove kept prompts whose scenario has no data any more, that are unused for ``UNUSED_DAYS``, or too many.

    What cannot be removed stays. Returns what was.
    """
    now = time.time()
    found: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError), os.scandir(output_path / "prompts") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                found.append((now - status.st_mtime, status.st_size, Path(entry.path)))
    left = sum(size for _, size, _ in found)
    removed = []
    for age, size, path in sorted(found, reverse=True):
        half_written = path.suffix == ".tmp"  # by a process that was killed; a living one's is seconds old
        if not half_written and path.suffix != ".json":
            continue  # not ours
        too_much = left > most_bytes and age > USED_LATELY_DAYS * _DAY
        abandoned = half_written and age > USED_LATELY_DAYS * _DAY
        if age > UNUSED_DAYS * _DAY or too_much or abandoned or (not half_written and _data_gone(path, output_path)):
            with contextlib.suppress(OSError):
                path.unlink()
                left -= size
                removed.append(path)
    if removed:
        _LOGGER.info("kept prompts: %d files removed, %d bytes are left", len(removed), left)
    return removed


def _data_gone(path: Path, output_path: Path) -> bool:
    """Whether ``path`` was made of files in directories that are no more: its stamp cannot come back without them."""
    scenario = path.name.rpartition("-")[0]
    if (output_path / "scenarios" / scenario).exists() or any(
        (output_path / "scenario_instances").glob(f"{scenario}*/input_instances.json")
    ):
        return False
    try:
        with path.open(encoding="ascii") as stream:
            return stream.readline().rstrip("\n") != NO_DATA
    except (OSError, ValueError):
        return False
