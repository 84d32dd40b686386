"""The converted models of one run on disk: how many are kept, and how room is made for the next one.

They are named ``<work_dir>/<model>/iter_NNNNNNN/hf``; "oldest" means of the lowest iteration. What failed a check is
quarantined as ``hf.quarantined`` beside it, for a person to look at; only the newest of these is kept.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

RESERVE_BYTES = 64 * 2**20  # left free on the disk: results, ledger and logs are written there too


class NoRoomError(Exception):
    """The converted model does not fit, although all that may be removed has been."""


def converted_models(run_directory: Path) -> list[Path]:
    """All that are there, oldest first."""
    return sorted(run_directory.glob("iter_*/hf"), key=lambda path: _iteration(path.parent))


def keep_newest(run_directory: Path, count: int, in_use: Collection[Path]) -> None:
    """Remove all but the ``count`` newest converted models and the newest quarantined one, never one ``in_use``."""
    free = [path for path in converted_models(run_directory) if path not in in_use]
    quarantined = sorted(run_directory.glob("iter_*/hf.quarantined"), key=lambda path: _iteration(path.parent))
    for path in [*free[: max(0, len(free) - count)], *quarantined[:-1]]:
        shutil.rmtree(path, ignore_errors=True)


def sweep(run_directory: Path, busy: Collection[Path] = ()) -> None:
    """Remove what a worker that was killed left: a conversion beside its place, files under their temporary names. In
    directories that are ``busy`` one may be at work still, on another machine."""
    for directory in run_directory.glob("iter_*"):
        if directory in busy:
            continue
        for pattern in (".hf.partial-*", ".hf.old-*"):
            for left in directory.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
        for pattern in (".*.tmp", "results/*/.*.tmp", "predictions/*/.*.tmp"):
            for file in directory.glob(pattern):
                with contextlib.suppress(OSError):
                    file.unlink()


def make_room(target: Path, needed: int, budget: int | None, in_use: Path | None = None) -> None:
    """Make sure that ``needed`` bytes for the model ``target`` fit the disk and the ``budget``.

    Other converted models of the run but the one ``in_use`` are removed for it, oldest first. Raises ``NoRoomError`` with the figures when
    that is not enough; nothing is removed in vain.
    """
    others = [path for path in converted_models(target.parent.parent) if path not in (target, in_use)]
    sizes = {path: size_of(path) for path in others}
    if budget is not None and in_use is not None:
        budget -= size_of(in_use)
    if budget is not None and needed > budget:
        raise NoRoomError(
            f"{target}: takes {_gb(needed)}, model.converted_disk_gb allows {_gb(budget)} for all converted models"
        )
    free = shutil.disk_usage(target.parent).free - RESERVE_BYTES
    if needed > free + sum(sizes.values()):
        raise NoRoomError(
            f"{target}: takes {_gb(needed)}, its disk has {_gb(max(0, free))} to give, and {_gb(sum(sizes.values()))} "
            f"in older converted models; make room and run evaluator.py --retry"
        )
    while others and (needed > free or (budget is not None and needed + sum(sizes.values()) > budget)):
        oldest = others.pop(0)
        shutil.rmtree(oldest, ignore_errors=True)
        free += sizes.pop(oldest)


def size_of(directory: Path) -> int:
    """Bytes of the files below ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _iteration(directory: Path) -> int:
    return int(directory.name.removeprefix("iter_"))


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
