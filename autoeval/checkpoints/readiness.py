"""Whether a checkpoint may be evaluated: what its own files say (``inspect``), and what the tracker and time add.

The tracker is written last in every Megatron layout, so "the tracker is newer than the files" proves that a save was
finished; it also tells a finished save from one that is being written again in place, during which all old marks look
valid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from autoeval.checkpoints import contents
from autoeval.checkpoints.layout import (
    DCP_FORMATS,
    TRACKER,
    Format,
    Listing,
    Tracker,
    fingerprint_of,
    foreign_link,
    format_by_names,
    iteration_of,
    list_files,
    weights,
)
from autoeval.checkpoints.place import Place, StoredPlace
from autoeval.checkpoints.settle import SettleTimes
from autoeval.checkpoints.uploads import upload_doubts
from autoeval.storage import StorageError
from recorder.untrusted import printable

SKEW_SECONDS = 2.0  # between the clocks of nodes that write to one network file system

_IN_ORDER = contents.Disorder()

State = Literal["complete", "incomplete", "abandoned", "unsupported"]


@dataclass(frozen=True)
class Readiness:
    """``reason`` is for a person: what is missing, or why it will never be evaluated.

    ``again_in`` is the number of seconds after which time alone may change the answer, ``None`` when it can't.
    """

    state: State
    reason: str = ""
    again_in: float | None = None


@dataclass(frozen=True)
class Inspection:
    """All that can be said from the checkpoint's own files. ``problem`` is empty when they are whole.

    ``missing`` tells that the problem is a file that is not there, ``unsupported`` that it will not go away. ``files``
    are those that make it up, once they are whole.
    """

    format: Format
    fingerprint: str
    problem: str = ""
    missing: bool = False
    unsupported: bool = False
    disorder: contents.Disorder = _IN_ORDER
    files: tuple[str, ...] = ()


def inspect(directory: Place, listing: Listing) -> Inspection:
    """Judge the checkpoint's files. Reads headers and indices only; a missing file is a problem, never an exception.

    Raises ``StorageError`` when the store that has them cannot be asked: that says nothing of the checkpoint.
    """
    try:
        format = format_by_names(directory, listing)
        mark = fingerprint_of(directory, listing, format)
        sizes = listing.sizes()
        if not isinstance(directory, StoredPlace) and (link := foreign_link(directory, listing)) is not None:
            raise contents.UnsupportedError(f"{link} is a link to a file of another user, which is not followed")
        if format == "torch_dist":
            whole = contents.check_dcp(directory, sizes)
            format = "torch_dist" if "metadata.json" in sizes else "fsdp_dtensor"
        elif format == "torch":
            whole = contents.check_legacy(directory, sizes)
        elif format == "huggingface":
            whole = contents.check_huggingface(directory, sizes)
        elif format == "zarr":
            raise contents.UnsupportedError("zarr checkpoints can't be read; convert it with Megatron-LM before 2026")
        else:
            raise contents.MissingError("no checkpoint files yet")
    except contents.UnsupportedError as error:
        return Inspection(format, mark, printable(str(error)), unsupported=True)
    except contents.NotWholeError as error:
        return Inspection(format, mark, printable(str(error)), missing=isinstance(error, contents.MissingError))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = printable(f"{error.filename or directory}: {error.strerror or error}")
        return Inspection("unknown", "", problem, missing=missing)
    except StorageError:
        raise
    except Exception as error:  # whatever a file holds, it is one checkpoint's problem and never the daemon's
        return Inspection("unknown", "", printable(f"{directory}: cannot be read: {type(error).__name__}: {error}"))
    return Inspection(format, mark, disorder=whole.disorder, files=whole.files)


def check(
    directory: Place,
    tracker: Tracker,
    *,
    model_type: str = "megatron",
    listing: Listing | None = None,
    inspection: Inspection | None = None,
    later_ns: int | None = None,
    now: float | None = None,
    settle: SettleTimes | None = None,
    before: Listing | None = None,
    rest: float = 0.0,
) -> Readiness:
    """Whether the checkpoint in ``directory`` may be evaluated.

    ``listing`` and ``inspection`` save work when the caller has them. ``later_ns`` is when the last file of a complete
    one of a higher iteration was written (nanoseconds since the epoch), ``None`` when there is none. ``now`` is
    ``time.time()``. ``before`` is the listing with which an uploaded checkpoint was last found complete.
    ``rest`` is for how many seconds the caller has seen the listing as it is, whatever the clocks say: files of a
    machine whose clock is ahead are not young for ever.
    """
    now = time.time() if now is None else now
    settle = settle or SettleTimes()
    if listing is None:
        assert not isinstance(directory, StoredPlace)
        try:
            listing = list_files(directory)
        except OSError as error:
            return Readiness("incomplete", f"{directory}: {error.strerror}")
    inspection = inspection or inspect(directory, listing)
    if inspection.unsupported:
        return Readiness("unsupported", inspection.problem)
    if model_type == "megatron" and inspection.format == "huggingface":
        return Readiness("unsupported", "a Hugging Face directory; watch it with --model-type huggingface")
    if model_type == "huggingface" and inspection.format in (*DCP_FORMATS, "torch"):
        return Readiness("unsupported", "a Megatron checkpoint; watch it with --model-type megatron")
    if inspection.problem:
        doubts = [(inspection.problem, math.inf)]
    else:
        age = max(now - listing.newest_ns / 1e9, rest)
        if listing.ordered:
            doubts = list(_doubts(directory.name, tracker, inspection, listing, age, settle))
        else:
            tracked = (
                None
                if inspection.format == "huggingface"
                else _compare(directory.name, tracker, listing, inspection.format)
            )
            doubts = list(upload_doubts(tracked, tracker.problem, inspection.files, listing, before, age, settle))
    doubts = [(reason, seconds) for reason, seconds in doubts if seconds > 0]
    if not doubts:
        return Readiness("complete")
    reason, _ = doubts[0]
    if _is_abandoned(listing, later_ns, now, settle.abandoned):
        return Readiness("abandoned", f"{reason}; a later checkpoint is complete and this one no longer changes")
    wait = max(seconds for _, seconds in doubts)
    return Readiness("incomplete", reason, wait if math.isfinite(wait) else None)


def _is_abandoned(listing: Listing, later_ns: int | None, now: float, seconds: float) -> bool:
    """A later save that was completed before this one was last touched is of a run since rolled back: it tells little."""
    rest = now - listing.touched_ns / 1e9
    sure = listing.ordered and later_ns is not None and later_ns >= listing.touched_ns  # else an upload may go on
    return later_ns is not None and rest > (seconds if sure else 10 * seconds)


def _doubts(
    name: str, tracker: Tracker, inspection: Inspection, listing: Listing, age: float, settle: SettleTimes
) -> Iterator[tuple[str, float]]:
    """Why whole files may still be part of a save that goes on, each with the seconds of rest that would end the doubt.

    ``age`` is that of the youngest file, in seconds.
    """
    if inspection.format == "huggingface":
        if inspection.disorder.ns > SKEW_SECONDS * 1e9:
            yield _told(inspection.disorder), settle.disorder - age
        yield "its files have changed just now", settle.quiet - age
    elif inspection.format in DCP_FORMATS:
        yield from _dcp_doubts(name, tracker, inspection, listing, age, settle)
    else:
        yield from _legacy_doubts(name, tracker, listing, age, settle)


def _told(disorder: contents.Disorder) -> str:
    return (
        f"{disorder.file} was written after {disorder.than}: being saved again? "
        f"(a copy must keep the files' times; if this is one, touch {disorder.than})"
    )


def _dcp_doubts(
    name: str, tracker: Tracker, inspection: Inspection, listing: Listing, age: float, settle: SettleTimes
) -> Iterator[tuple[str, float]]:
    """The marks prove the content, unless files contradict their order; only then when the save ends is uncertain."""
    if inspection.disorder.ns:
        skew = inspection.disorder.ns <= SKEW_SECONDS * 1e9
        yield _told(inspection.disorder), settle.disorder - age if skew else math.inf
    reached, after, shown = _compare(name, tracker, listing, inspection.format)
    # A tracker that moved backwards is written after the files all the same.
    if tracker.value is None or not after:
        rest = settle.marks if tracker.value is None or reached else settle.behind
        yield tracker.problem or f"{shown} and is older than the checkpoint's files", rest - age
    sizes = listing.sizes()
    if "train_state.pt" in sizes:
        quiet = age + (listing.newest_ns - sizes["run_config.yaml"][1]) / 1e9
        yield "run_config.yaml has been written just now", settle.quiet - quiet


def _legacy_doubts(
    name: str, tracker: Tracker, listing: Listing, age: float, settle: SettleTimes
) -> Iterator[tuple[str, float]]:
    """No mark in the directory: only a tracker that is at or past the iteration, and newer, proves the whole."""
    reached, after, shown = _compare(name, tracker, listing, "torch")
    if reached and after:
        return
    if tracker.value is None or not (reached or after):
        yield tracker.problem or f"{shown}, not yet {iteration_of(name)}", math.inf
    elif not reached:
        yield f"{shown}, not {iteration_of(name)}: rolled back?", settle.legacy - age
    else:
        times = [file.mtime_ns for file in weights(listing, "torch")]
        one_save = min(times) > tracker.mtime_ns or max(times) - tracker.mtime_ns <= SKEW_SECONDS * 1e9
        reason = f"{shown} but is older than the checkpoint's files: being saved again?"
        yield reason, settle.legacy - age if one_save else math.inf


def _compare(name: str, tracker: Tracker, listing: Listing, format: str) -> tuple[bool, bool, str]:
    """Whether the tracker is at or past the checkpoint, whether it is not older than its files, and what it says."""
    newest = max((file.mtime_ns for file in weights(listing, format)), default=0)
    iteration = iteration_of(name)
    if name == "release" or not isinstance(tracker.value, int):
        reached = tracker.value == name
    else:
        reached = iteration is not None and tracker.value >= iteration
    shown = f"{TRACKER} {'is missing' if tracker.value is None else f'says {tracker.value}'}"
    return reached, tracker.mtime_ns >= newest, shown
