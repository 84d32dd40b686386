"""Finds complete checkpoints. ``scan`` is the truth; events and the clock only say when to scan again.

watcher.start()
while watcher.wait(timeout=None):
    for checkpoint in watcher.scan().complete: …
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import Any, Literal

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.events import Events
from autoeval.checkpoints.layout import Listing, iteration_of, list_files, look_at_tracker
from autoeval.checkpoints.readiness import Inspection, Readiness, check, inspect
from autoeval.checkpoints.settle import SettleTimes

logger = logging.getLogger(__name__)

PENDING_SECONDS = 1.0  # between looks while a checkpoint is on its way: events may be lost
PENDING_PATIENCE_SECONDS = 120.0  # a save that has not changed for so long is left to events and the interval
LEAST_GAP_SECONDS, GREATEST_GAP_SECONDS = 0.2, 0.6  # between two looks: a save makes thousands of events
TORN_SECONDS = 5.0
MOST_FOLLOWED = 12  # directories, newest first: watchdog takes a thread for each


@dataclass(frozen=True)
class ScanResult:
    """``waiting``, ``abandoned`` and ``unsupported`` are (iteration, reason); all are in ascending order.

    ``abandoned``: the save never ended and a later one did. ``unsupported``: nothing here can ever read it.
    """

    complete: tuple[Checkpoint, ...] = ()
    waiting: tuple[tuple[int, str], ...] = ()
    abandoned: tuple[tuple[int, str], ...] = ()
    unsupported: tuple[tuple[int, str], ...] = ()


class Watcher:
    """Watches one save directory, which need not exist yet.

    Looks at iterations ``begin``, ``begin + interval``, … up to ``end`` (``None``: for ever). ``token_per_iteration``
    is in billions. ``scan`` belongs to one thread; ``wait`` may be called from another.
    """

    def __init__(
        self,
        checkpoint_path: Path,
        model: str,
        *,
        token_per_iteration: float | None,
        begin: int,
        end: int | None,
        interval: int,
        check_interval_seconds: float,
        model_type: Literal["megatron", "huggingface"] | str = "megatron",
        settle: SettleTimes | None = None,
    ):
        if interval < 1:
            raise ValueError(f"interval is {interval}, expected at least 1")
        if check_interval_seconds <= 0:
            raise ValueError(f"check_interval_seconds is {check_interval_seconds}, expected a positive number")
        self.checkpoint_path = Path(checkpoint_path).absolute()
        self.model = model
        self.token_per_iteration = token_per_iteration
        self.begin, self.end, self.interval = begin, end, interval
        self.check_interval_seconds = check_interval_seconds
        self.model_type = model_type
        self.settle = settle or SettleTimes()
        self._known: dict[str, tuple[Listing, Inspection]] = {}
        self._events: Events | None = None
        self._scheduler: Any = None
        self._state = threading.Condition()  # guards what follows
        self._changed = self._stopped = False
        self._woken = time.monotonic()  # when ``wait`` last returned True
        self._look_again: float | None = None  # when time alone may change the answer
        self._gap = LEAST_GAP_SECONDS
        self._in_progress = False

    @property
    def save_in_progress(self) -> bool:
        """Whether the last ``scan`` saw a save that may soon be complete: there is work to prepare for."""
        return self._in_progress

    def wanted(self, iteration: int) -> bool:
        """Whether ``iteration`` is one of begin, begin + interval, …, end."""
        in_range = iteration >= self.begin and (self.end is None or iteration <= self.end)
        return in_range and (iteration - self.begin) % self.interval == 0

    def scan(self) -> ScanResult:
        """One look at the disk: stats only, except for files that have changed since the last look."""
        started = time.monotonic()
        tracker = look_at_tracker(self.checkpoint_path)  # first: files that change after it count as newer
        complete: list[Checkpoint] = []
        told: dict[str, list[tuple[int, str]]] = {"incomplete": [], "abandoned": [], "unsupported": []}
        unfinished: list[Path] = []
        again: list[float] = []
        later_ns: int | None = None
        now = time.time()
        known: dict[str, tuple[Listing, Inspection]] = {}
        for iteration, directory in self._directories():
            try:
                listing, inspection = known[directory.name] = self._look(directory, now)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    told["incomplete"].append((iteration, f"{directory}: {error.strerror}"))
                continue
            readiness = check(
                directory,
                tracker,
                model_type=self.model_type,
                listing=listing,
                inspection=inspection,
                later_ns=later_ns,
                now=now,
                settle=self.settle,
            )
            if readiness.state == "complete":
                complete.append(self._checkpoint(iteration, directory, inspection))
                later_ns = max(later_ns or 0, listing.newest_ns)
                continue
            told[readiness.state].append((iteration, readiness.reason))
            if readiness.state == "incomplete":
                unfinished.append(directory)
                again += self._seconds_to_next_look(listing, readiness, now)
        self._known = known  # what was deleted is forgotten
        events = self._events
        if events is not None:
            # Without a tracker nothing in the root tells that a whole one is saved again.
            whole = [checkpoint.path for checkpoint in complete] if self.model_type == "huggingface" else []
            events.follow([*unfinished[:MOST_FOLLOWED], *whole[:MOST_FOLLOWED]])
        self._plan_next_look(started, min(again, default=None))
        return ScanResult(
            tuple(reversed(complete)),
            tuple(reversed(told["incomplete"])),
            tuple(reversed(told["abandoned"])),
            tuple(reversed(told["unsupported"])),
        )

    def start(self) -> None:
        """Begin to notice changes: file-system events where there are any, the interval everywhere."""
        from apscheduler.schedulers.background import BackgroundScheduler

        self._scheduler = BackgroundScheduler(daemon=True, timezone=timezone.utc)
        self._scheduler.add_job(
            self._note_change, "interval", seconds=self.check_interval_seconds, coalesce=True, misfire_grace_time=None
        )
        self._scheduler.start()
        self._events = Events(self.checkpoint_path, self._note_change)
        self._events.follow([])
        with self._state:
            self._woken -= LEAST_GAP_SECONDS
        self._note_change()

    def stop(self) -> None:
        """End all threads; a ``wait`` in another thread returns False."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.shutdown(wait=False)
        events, self._events = self._events, None
        if events is not None:
            events.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """True when something may have changed, so that a scan is due; False after ``timeout`` seconds or ``stop``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._state:
            while not self._stopped:
                now = time.monotonic()
                due = self._due()
                if due <= now:
                    self._changed, self._look_again, self._woken = False, None, now
                    return True
                if deadline is not None and deadline <= now:
                    return False
                until = due if deadline is None else min(due, deadline)
                self._state.wait(min(until - now, threading.TIMEOUT_MAX))
        return False

    def _due(self) -> float:
        """The moment of the next look, by the monotonic clock; infinite while nothing calls for one."""
        earliest = self._woken + self._gap
        if self._changed:
            return earliest
        return math.inf if self._look_again is None else max(self._look_again, earliest)

    def _note_change(self) -> None:
        with self._state:
            if not self._changed:
                self._changed = True
                self._state.notify_all()

    def _plan_next_look(self, started: float, seconds: float | None) -> None:
        self._in_progress = seconds is not None
        with self._state:
            now = time.monotonic()
            # A big directory takes long to look at: the processor is to rest most of the time all the same.
            self._gap = min(max(LEAST_GAP_SECONDS, 4 * (now - started)), GREATEST_GAP_SECONDS)
            self._look_again = None if seconds is None else now + seconds
            self._state.notify_all()  # a ``wait`` that has begun knows of a later moment only

    def _seconds_to_next_look(self, listing: Listing, readiness: Readiness, now: float) -> list[float]:
        waits = [] if readiness.again_in is None else [readiness.again_in + 0.01]
        if now - listing.touched_ns / 1e9 < PENDING_PATIENCE_SECONDS:
            waits.append(PENDING_SECONDS)
        return waits

    def _directories(self) -> list[tuple[int, Path]]:
        """Wanted iteration directories, highest iteration first."""
        found = []
        try:
            with os.scandir(self.checkpoint_path) as entries:
                for entry in entries:
                    iteration = iteration_of(entry.name, self.model_type)
                    if iteration is not None and self.wanted(iteration) and _is_directory(entry):
                        found.append((iteration, Path(entry.path)))
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("%s cannot be read: %s", self.checkpoint_path, error.strerror)
            return []
        return sorted(found, reverse=True)

    def _look(self, directory: Path, now: float) -> tuple[Listing, Inspection]:
        listing = list_files(directory)
        before = self._known.get(directory.name)
        if before is not None and before[0] == listing:
            # What was found torn is read again for a while: a clock tick may hide that its writer went on.
            settled = now - listing.touched_ns / 1e9 > TORN_SECONDS
            if not before[1].problem or (settled and before[1].fingerprint):
                return before
        return listing, inspect(directory, listing)

    def _checkpoint(self, iteration: int, directory: Path, inspection: Inspection) -> Checkpoint:
        per_iteration = self.token_per_iteration
        return Checkpoint(
            model=self.model,
            iteration=iteration,
            path=directory,
            format=inspection.format,
            fingerprint=inspection.fingerprint,
            tokens=None if per_iteration is None else iteration * per_iteration,
        )


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: no reason not to see the others
        return False
