"""Whether objects that are all there, and whole, may still be part of an upload that goes on.

An object appears whole and at once, but in any order: a tracker first, the marks before the shards. Its time is when it
was uploaded (of a multipart upload: when that began), not when it was saved, so times prove only two things. The tracker
is Megatron's last write: where it is younger than all files, and these are of one upload, it is over. And an upload
that has rested for much longer than it ever paused is over too. Old and new objects side by side are an upload over an
earlier save: the pause between them is as long as the time between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from autoeval.checkpoints.contents import PAUSE_SECONDS
from autoeval.checkpoints.settle import SettleTimes

if TYPE_CHECKING:
    from autoeval.checkpoints.layout import Listing

STORE_TICK_SECONDS = 1.0  # S3 counts whole seconds


def upload_doubts(
    tracked: tuple[bool, bool, str] | None,
    problem: str,
    files: Sequence[str],
    listing: Listing,
    before: Listing | None,
    age: float,
    settle: SettleTimes,
) -> Iterator[tuple[str, float]]:
    """(reason, seconds of rest that would end the doubt). ``age`` is the youngest object's, in seconds.

    ``tracked``: whether the tracker is at or past the iteration, whether it is not older than the files, what it says;
    ``None`` for a layout without one; ``problem`` says why it can't be read. ``before`` is the listing with which this
    directory was last found complete.
    """
    pause, earlier, later = longest_pause(files, listing)
    kept = _kept(files, listing, before)
    age -= STORE_TICK_SECONDS
    if kept:
        reason = f"{kept} of {len(files)} objects are those of the save before: is it being uploaded again?"
        yield reason, max(settle.disorder, 2 * pause) - age
    if pause > PAUSE_SECONDS:
        reason = f"{later} was uploaded {pause / 60:.0f} min after {earlier}: are they of two saves?"
        yield reason, max(settle.disorder, 2 * pause) - age
    if tracked is None:
        yield "its objects were uploaded just now", max(settle.upload, 2 * pause) - age
        return
    reached, after, shown = tracked
    if reached and after and age < STORE_TICK_SECONDS:  # within one second nobody knows which came first
        yield "its objects were uploaded just now", STORE_TICK_SECONDS - age
    if not (reached and after):
        rest = settle.behind if not reached and "says" in shown else settle.upload
        yield problem or f"{shown} and is older than the checkpoint's objects", max(rest, 2 * pause) - age


def longest_pause(files: Sequence[str], listing: Listing) -> tuple[float, str, str]:
    """Seconds between two uploads that followed one another, and these two, from the first of ``files`` to the last.

    Other objects count for what comes between: they show that the upload went on.
    """
    needed = set(files)
    own = [file.mtime_ns for file in listing.files if file.name in needed]
    first, last = min(own, default=0), max(own, default=0)
    times = sorted((file.mtime_ns, file.name) for file in listing.files if first <= file.mtime_ns <= last)
    pauses = (((later - earlier) / 1e9, one, other) for (earlier, one), (later, other) in pairwise(times))
    return max(pauses, default=(0.0, "", ""))


def _kept(files: Sequence[str], listing: Listing, before: Listing | None) -> int:
    """How many are as they were, while others are not; 0 when all are, or none."""
    if before is None:
        return 0
    known = {file.name: (file.size, file.etag or file.mtime_ns) for file in before.files}
    now = {file.name: (file.size, file.etag or file.mtime_ns) for file in listing.files}
    kept = sum(known.get(name) == now.get(name) for name in files)
    return kept if kept < len(files) else 0
