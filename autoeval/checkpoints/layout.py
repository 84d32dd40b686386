"""What a save directory looks like, and whether a checkpoint in it is whole.

Layouts and write order: Megatron-LM's ``checkpointing.py`` and megatron-core's ``dist_checkpointing`` as observed on
real runs. The tracker is written last in every layout, so "the tracker is newer than the files" proves that a save was
finished; it also tells a finished save from one that is being written again in place, during which all old marks look
valid.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoeval.checkpoints import contents

TRACKER = "latest_checkpointed_iteration.txt"
SETTLE_SECONDS = 10.0  # torch_dist marks alone prove a save that nobody has touched for so long
LEGACY_SETTLE_SECONDS = 60.0  # legacy files carry no mark of their own
HUGGINGFACE_SETTLE_SECONDS = 2.0
ABANDONED_SECONDS = 60.0
SKEW_SECONDS = 2.0  # between the clocks of nodes that write to one network file system
SKEW_SETTLE_SECONDS = 60.0

State = Literal["complete", "incomplete", "abandoned", "unsupported"]
Format = Literal["torch_dist", "torch", "huggingface", "zarr", "unknown"]

_MEGATRON_NAME = re.compile(r"iter_(\d{7,})")
_HUGGINGFACE_NAME = re.compile(r"(?:checkpoint|step|iter|global_step)[-_]?(\d+)")
_RANK = re.compile(r"mp_rank_\d\d(_\d{3}){0,2}")
_WEIGHTS = {
    "torch_dist": re.compile(r"\.metadata|metadata\.json|common\.pt|integrity\.json|[^/]*\.distcp"),
    "torch": re.compile(r"mp_rank_[\d_]+/model_optim_rng\.pt"),
    "huggingface": re.compile(r"config\.json|[^/]*\.index\.json|[^/]*\.safetensors|pytorch_model[^/]*\.bin"),
}


@dataclass(frozen=True)
class Readiness:
    """``reason`` is for a person: what is missing, or why it will never be evaluated."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class FileStat:
    """``name`` is relative to the checkpoint's directory, with ``/``; ``size`` in bytes."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """One look at a checkpoint directory. Equal listings hold equal files, as far as ``stat`` can tell."""

    files: tuple[FileStat, ...]
    directory_mtime_ns: int

    @property
    def newest_ns(self) -> int:
        return max((file.mtime_ns for file in self.files), default=0)

    @property
    def touched_ns(self) -> int:
        """Last sign of life, deletions included."""
        return max(self.newest_ns, self.directory_mtime_ns)


@dataclass(frozen=True)
class Tracker:
    """``value`` is ``None`` when there is no tracker or it can't be understood (then ``problem`` says why)."""

    value: int | Literal["release"] | None
    mtime_ns: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """All that can be said from the checkpoint's own files. ``problem`` is empty when they are whole.

    ``late_ns`` says by how much ``late_file`` is younger than the mark that should have been written after it.
    """

    format: Format
    fingerprint: str
    problem: str
    unsupported: bool = False
    late_ns: int = 0
    late_file: str = ""


def iteration_of(name: str, model_type: str = "megatron") -> int | None:
    """Iteration in a directory name; ``release`` is 0; ``None`` for other names."""
    if model_type == "megatron":
        if name == "release":
            return 0
        match = _MEGATRON_NAME.fullmatch(name)
    else:
        match = _HUGGINGFACE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def look_at_tracker(save_directory: Path) -> Tracker:
    """The tracker with its time. It is not written atomically, so it can be seen empty or cut short."""
    path = save_directory / TRACKER
    try:
        with path.open("rb") as stream:
            # The time before the content: then the content is never older than the time says.
            mtime_ns = os.fstat(stream.fileno()).st_mtime_ns
            text = stream.read(64).strip()
    except FileNotFoundError:
        return Tracker(None)
    except OSError as error:
        return Tracker(None, problem=f"{path} cannot be read: {error.strerror}")
    if text == b"release":
        return Tracker("release", mtime_ns)
    if text.isdigit():
        return Tracker(int(text), mtime_ns)
    return Tracker(None, mtime_ns, f"{path} holds {text[:20]!r}, expected an iteration: still being written?")


def read_tracker(save_directory: Path) -> int | Literal["release"] | None:
    """The tracker's value, ``None`` when there is none or it is torn."""
    return look_at_tracker(save_directory).value


def list_files(directory: Path) -> Listing:
    """Names, sizes and times of the files in ``directory`` and, for Megatron's rank directories, one level below.

    Raises ``OSError`` when the directory is gone or can't be read. A file deleted while looking is left out.
    """
    directory_mtime_ns = directory.stat().st_mtime_ns
    files: list[FileStat] = []
    for prefix, entry in _entries(directory):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        files.append(FileStat(prefix + entry.name, status.st_size, status.st_mtime_ns))
    return Listing(tuple(sorted(files, key=lambda file: file.name)), directory_mtime_ns)


def _entries(directory: Path) -> list[tuple[str, os.DirEntry[str]]]:
    found: list[tuple[str, os.DirEntry[str]]] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir():
                found.append(("", entry))
            elif _RANK.fullmatch(entry.name):
                with os.scandir(entry.path) as inner:
                    found += [(f"{entry.name}/", file) for file in inner if not file.is_dir()]
    return found


def detect_format(directory: Path, listing: Listing | None = None) -> Format:
    """As Megatron decides: ``metadata.json``, then rank directories. ``unknown`` when nothing tells yet."""
    names = {file.name for file in (listing or list_files(directory)).files}
    if "metadata.json" in names:
        return "zarr" if contents.sharded_backend(directory / "metadata.json") == "zarr" else "torch_dist"
    if any(name.startswith("mp_rank_") for name in names):
        return "torch"
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return "torch_dist"
    if "config.json" in names:
        return "huggingface"
    return "unknown"


def weights(listing: Listing, format: str) -> tuple[FileStat, ...]:
    """The files that make the checkpoint what it is; tokenizers and such may come later and change nothing."""
    pattern = _WEIGHTS.get(format)
    return tuple(file for file in listing.files if pattern is None or pattern.fullmatch(file.name))


def fingerprint(directory: Path) -> str:
    """Hash of the names, sizes and modification times of the weight files (and of ``integrity.json``'s content).

    Raises ``OSError`` when the directory can't be read. Reads nothing big.
    """
    listing = list_files(directory)
    return _fingerprint(directory, listing, detect_format(directory, listing))


def _fingerprint(directory: Path, listing: Listing, format: Format) -> str:
    digest = hashlib.sha256()
    for file in weights(listing, format):
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode())
        if file.name == "integrity.json":
            digest.update((directory / file.name).read_bytes())
    return digest.hexdigest()[:32]


def inspect(directory: Path, listing: Listing) -> Inspection:
    """Judge the checkpoint's files. Reads headers and indices only; a missing file is a problem, never an exception."""
    try:
        format = detect_format(directory, listing)
        mark = _fingerprint(directory, listing, format)
        sizes = {file.name: (file.size, file.mtime_ns) for file in listing.files}
        if format == "torch_dist":
            late_ns, late_file = contents.check_torch_dist(directory, sizes)
            return Inspection(format, mark, "", late_ns=late_ns, late_file=late_file)
        if format == "torch":
            contents.check_legacy(directory, sizes)
        elif format == "huggingface":
            contents.check_huggingface(directory, sizes)
        elif format == "zarr":
            raise contents.UnsupportedError("zarr checkpoints can't be read; convert it with Megatron-LM before 2026")
        else:
            raise contents.NotWholeError("no checkpoint files yet")
    except contents.UnsupportedError as error:
        return Inspection(format, mark, str(error), unsupported=True)
    except contents.NotWholeError as error:
        return Inspection(format, mark, str(error))
    except OSError as error:
        return Inspection("unknown", "", f"{error.filename or directory}: {error.strerror}")
    return Inspection(format, mark, "")


def check(
    directory: Path,
    tracker: Tracker,
    *,
    model_type: str = "megatron",
    listing: Listing | None = None,
    inspection: Inspection | None = None,
    later_is_complete: bool = False,
    now: float | None = None,
) -> Readiness:
    """Whether the checkpoint in ``directory`` may be evaluated.

    ``listing`` and ``inspection`` save work when the caller has them. ``later_is_complete`` tells that one of a higher
    iteration is complete: then one that has stopped changing is ``abandoned``. ``now`` is ``time.time()``.
    """
    now = time.time() if now is None else now
    try:
        listing = listing or list_files(directory)
    except OSError as error:
        return Readiness("incomplete", f"{directory}: {error.strerror}")
    inspection = inspection or inspect(directory, listing)
    if inspection.unsupported:
        return Readiness("unsupported", inspection.problem)
    if model_type == "megatron" and inspection.format == "huggingface":
        return Readiness("unsupported", "a Hugging Face directory; watch it with --model-type huggingface")
    if model_type == "huggingface" and inspection.format in ("torch", "torch_dist"):
        return Readiness("unsupported", "a Megatron checkpoint; watch it with --model-type megatron")
    problem = (
        inspection.problem
        or _late(inspection, listing, now)
        or _not_finished(directory.name, tracker, listing, inspection.format, now)
    )
    if not problem:
        return Readiness("complete")
    if later_is_complete and now - listing.touched_ns / 1e9 > ABANDONED_SECONDS:
        return Readiness("abandoned", f"{problem}; a later checkpoint is complete and this one no longer changes")
    return Readiness("incomplete", problem)


def _late(inspection: Inspection, listing: Listing, now: float) -> str:
    """A save in place shows as files younger than the marks. A little younger, and long ago, is only clock skew."""
    skew = inspection.late_ns <= SKEW_SECONDS * 1e9 and now - listing.newest_ns / 1e9 >= SKEW_SETTLE_SECONDS
    if inspection.late_ns == 0 or skew:
        return ""
    return f"{inspection.late_file} was written after .metadata: being saved again? (copies must keep their times)"


def _not_finished(name: str, tracker: Tracker, listing: Listing, format: Format, now: float) -> str:
    """Why whole files may still be part of a save that goes on; empty when it has ended."""
    age = now - listing.newest_ns / 1e9
    if format == "huggingface":
        return "" if age >= HUGGINGFACE_SETTLE_SECONDS else "its files have changed just now"
    if tracker.problem:
        return tracker.problem
    if name == "release":
        return "" if tracker.value == "release" else f"{TRACKER} does not say 'release'"
    iteration = iteration_of(name)
    newest = max((file.mtime_ns for file in weights(listing, format)), default=0)
    reached = isinstance(tracker.value, int) and iteration is not None and tracker.value >= iteration
    after = tracker.mtime_ns >= newest
    shown = "is missing" if tracker.value is None else f"says {tracker.value}"
    if format == "torch_dist":
        # The marks inside prove the content; a tracker that moved backwards is still written after them.
        proven = (after and isinstance(tracker.value, int)) or age >= SETTLE_SECONDS
        return "" if proven else f"{TRACKER} {shown} and is older than the checkpoint's files"
    if (reached and after) or (isinstance(tracker.value, int) and (reached or after) and age >= LEGACY_SETTLE_SECONDS):
        return ""
    if not reached:
        return f"{TRACKER} {shown}, not yet {iteration}"
    return f"{TRACKER} {shown} but is older than the checkpoint's files: being saved again?"
