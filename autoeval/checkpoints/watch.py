"""Finds complete checkpoints. ``scan`` is the truth; events and the clock only say when to scan again.

watcher.start()
while watcher.wait(timeout=None):
    for checkpoint in watcher.scan().complete: …
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import Any, Literal

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.events import Events
from autoeval.checkpoints.layout import Listing, iteration_of
from autoeval.checkpoints.place import Place, StoredPlace
from autoeval.checkpoints.readiness import Inspection, Readiness, check, inspect
from autoeval.checkpoints.saves import LocalSaves, StoredSaves
from autoeval.checkpoints.settle import SettleTimes
from autoeval.storage import ObjectStore, StorageError

logger = logging.getLogger(__name__)

PENDING_SECONDS = 1.0  # between looks while a checkpoint is on its way: events may be lost
PENDING_PATIENCE_SECONDS = 120.0  # a save that has not changed for so long is left to events and the interval
LEAST_GAP_SECONDS, GREATEST_GAP_SECONDS = 0.2, 0.6  # between two looks: a save makes thousands of events
TORN_SECONDS = 5.0
FAR_INTERVAL_SECONDS = (
    60.0  # a store sends no events: it is looked at so often, or at the check interval if that is less
)
FAR_PENDING_SECONDS = 5.0  # ... and so often while a checkpoint is on its way
GREATEST_BACKOFF_SECONDS = 300.0  # between attempts to ask a store that does not answer
NOT_LOOKED_YET = "it has not been looked at yet"
MOST_FOLLOWED = 12  # directories, newest first: watchdog takes a thread for each


@dataclass(frozen=True)
class ScanResult:
    """``waiting``, ``abandoned`` and ``unsupported`` are (iteration, reason); all are in ascending order.

    ``abandoned``: the save never ended and a later one did. ``unsupported``: nothing here can ever read it. ``trouble``
    says why a store could not be asked: then nothing at all is known; ``lasting`` that waiting alone will not help.
    ``settles_in``: seconds until one that is ``waiting`` is complete if only nothing touches it.
    """

    complete: tuple[Checkpoint, ...] = ()
    waiting: tuple[tuple[int, str], ...] = ()
    abandoned: tuple[tuple[int, str], ...] = ()
    unsupported: tuple[tuple[int, str], ...] = ()
    trouble: str = ""
    lasting: bool = False
    settles_in: float | None = None


class Watcher:
    """Watches one save directory, which need not exist yet, or a prefix in a store.

    Looks at iterations ``begin``, ``begin + interval``, … up to ``end`` (``None``: for ever). ``token_per_iteration``
    is in billions. ``scan`` belongs to one thread; ``wait`` may be called from another. ``copies`` is the directory below
    which the copies of a store's checkpoints will be.

    A store may take long to answer. Once started, it is asked in ``wait``'s thread, and ``scan`` tells what was found.
    """

    def __init__(
        self,
        checkpoint_path: Path | ObjectStore,
        model: str,
        *,
        token_per_iteration: float | None,
        begin: int,
        end: int | None,
        interval: int,
        check_interval_seconds: float,
        model_type: Literal["megatron", "huggingface"] | str = "megatron",
        settle: SettleTimes | None = None,
        copies: Path = Path(".copies"),
    ):
        if interval < 1:
            raise ValueError(f"interval is {interval}, expected at least 1")
        if check_interval_seconds <= 0:
            raise ValueError(f"check_interval_seconds is {check_interval_seconds}, expected a positive number")
        self._saves: LocalSaves | StoredSaves
        if isinstance(checkpoint_path, ObjectStore):
            self._saves = StoredSaves(checkpoint_path)
            check_interval_seconds = min(check_interval_seconds, FAR_INTERVAL_SECONDS)
        else:
            self._saves = LocalSaves(Path(checkpoint_path).absolute())
        self.copies = copies
        self.model = model
        self.token_per_iteration = token_per_iteration
        self.begin, self.end, self.interval = begin, end, interval
        self.check_interval_seconds = check_interval_seconds
        self.model_type = model_type
        self.settle = settle or SettleTimes()
        self._known: dict[str, tuple[Listing, Inspection]] = {}
        self._since: dict[str, tuple[Listing, float]] = {}  # when a listing was first seen, monotonic clock
        self._before: dict[str, Listing] = {}  # with which uploads were last found complete
        self._latest = ScanResult(trouble=NOT_LOOKED_YET)
        self._failures = 0
        self._events: Events | None = None
        self._scheduler: Any = None
        self._state = threading.Condition()  # guards what follows
        self._changed = self._stopped = False
        self._woken = time.monotonic()  # when ``wait`` last returned True
        self._look_again: float | None = None  # when time alone may change the answer
        self._gap = LEAST_GAP_SECONDS
        self._in_progress = False

    @property
    def where(self) -> str:
        """The directory or the URL that is watched."""
        return str(self._saves)

    @property
    def store(self) -> ObjectStore | None:
        """``None`` for a directory here."""
        return self._saves.store if isinstance(self._saves, StoredSaves) else None

    @property
    def directory(self) -> Path | None:
        """``None`` for a store."""
        return self._saves.path if isinstance(self._saves, LocalSaves) else None

    def is_there(self) -> bool:
        """False while a directory that held checkpoints may be on a disk that is not mounted."""
        return self._saves.is_there()

    @property
    def save_in_progress(self) -> bool:
        """Whether the last ``scan`` saw a save that may soon be complete: there is work to prepare for."""
        return self._in_progress

    def wanted(self, iteration: int) -> bool:
        """Whether ``iteration`` is one of begin, begin + interval, …, end."""
        in_range = iteration >= self.begin and (self.end is None or iteration <= self.end)
        return in_range and (iteration - self.begin) % self.interval == 0

    def scan(self) -> ScanResult:
        """One look: stats only, except for files that have changed since the last look."""
        if self._saves.far and self._scheduler is not None:
            return self._latest
        return self._look_at_all()

    def _look_at_all(self) -> ScanResult:
        started = time.monotonic()
        try:
            result, again = self._ask()
        except StorageError as error:
            return self._on_trouble(error, started)
        except Exception as error:
            if not self._saves.far:
                raise
            logger.exception("%s cannot be looked at", self.where)  # in ``wait``'s thread nobody else would tell
            return self._on_trouble(StorageError(f"{self.where}: {type(error).__name__}: {error}"), started)
        if self._failures:
            self._failures = 0
            logger.info("%s answers again", self.where)
        self._plan_next_look(started, again)
        return result

    def _ask(self) -> tuple[ScanResult, float | None]:
        """What there is, and in how many seconds time alone may change it. Raises ``StorageError``."""
        saves = self._saves
        tracker = saves.tracker()  # first: files that change after it count as newer
        complete: list[Checkpoint] = []
        told: dict[str, list[tuple[int, str]]] = {"incomplete": [], "abandoned": [], "unsupported": []}
        unfinished: list[Path] = []
        again: list[float] = []
        settling: list[float] = []
        later_ns: int | None = None
        now = time.time() + saves.clock_offset()
        known: dict[str, tuple[Listing, Inspection]] = {}
        for iteration, name in self._wanted_names():
            try:
                directory, listing, inspection = self._look(name, now)
            except (OSError, StorageError) as error:
                if isinstance(error, StorageError) and not error.lasting:
                    raise
                if not isinstance(error, FileNotFoundError):
                    reason = str(error) if isinstance(error, StorageError) else f"{name}: {error.strerror}"
                    told["incomplete"].append((iteration, reason))
                continue
            known[name] = listing, inspection
            rest = self._rest(name, listing)
            readiness = check(
                directory,
                tracker,
                model_type=self.model_type,
                listing=listing,
                inspection=inspection,
                later_ns=later_ns,
                now=now,
                settle=self.settle,
                before=self._before.get(name),
                rest=rest,
            )
            if readiness.state == "complete":
                complete.append(self._checkpoint(iteration, directory, inspection))
                later_ns = max(later_ns or 0, listing.newest_ns)
                self._before[name] = listing
                continue
            told[readiness.state].append((iteration, readiness.reason))
            if readiness.state == "incomplete":
                unfinished += [directory] if isinstance(directory, Path) else []
                again += self._seconds_to_next_look(listing, readiness, now, rest)
                settling += [] if readiness.again_in is None else [readiness.again_in]
        self._known = known  # what was deleted is forgotten
        self._since = {name: seen for name, seen in self._since.items() if name in known}
        self._before = {name: listing for name, listing in self._before.items() if name in known and saves.far}
        saves.settled([name for name in self._before if known[name][0] == self._before[name]])
        self._follow(unfinished, complete)
        result = ScanResult(
            tuple(reversed(complete)),
            tuple(reversed(told["incomplete"])),
            tuple(reversed(told["abandoned"])),
            tuple(reversed(told["unsupported"])),
            settles_in=min(settling, default=None),
        )
        return result, min(again, default=None)

    def _rest(self, name: str, listing: Listing) -> float:
        """For how many seconds this watcher has seen ``listing`` as it is: clocks may differ, or be set meanwhile."""
        now = time.monotonic()
        if (seen := self._since.get(name)) is None or seen[0] != listing:
            seen = self._since[name] = (listing, now)
        return now - seen[1]

    def _follow(self, unfinished: list[Path], complete: list[Checkpoint]) -> None:
        events = self._events
        if events is not None:
            # Without a tracker nothing in the root tells that a whole one is saved again.
            whole = [checkpoint.path for checkpoint in complete] if self.model_type == "huggingface" else []
            events.follow([*unfinished[:MOST_FOLLOWED], *whole[:MOST_FOLLOWED]])

    def _on_trouble(self, error: StorageError, started: float) -> ScanResult:
        self._failures += 1
        seconds = min(FAR_PENDING_SECONDS * 2 ** min(self._failures - 1, 10), GREATEST_BACKOFF_SECONDS)
        seconds = min(seconds, self.check_interval_seconds)
        if self._scheduler is not None and self._latest.trouble != str(error):
            logger.warning("%s (asking again, in %.0f s at first)", error, seconds)
        if isinstance(self._saves, StoredSaves):
            self._saves.store.forget()  # credentials may be renewed meanwhile
        self._plan_next_look(started, seconds)
        self._in_progress = False
        return ScanResult(trouble=str(error), lasting=error.lasting)

    def start(self) -> None:
        """Begin to notice changes: file-system events where there are any, the interval everywhere."""
        from apscheduler.schedulers.background import BackgroundScheduler

        self._scheduler = BackgroundScheduler(daemon=True, timezone=timezone.utc)
        self._scheduler.add_job(
            self._note_change, "interval", seconds=self.check_interval_seconds, coalesce=True, misfire_grace_time=None
        )
        self._scheduler.start()
        self._events = self._saves.events(self._note_change)
        if self._events is not None:
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
        if not self._wait(timeout):
            return False
        if self._saves.far:
            self._latest = self._look_at_all()
        return True

    def _wait(self, timeout: float | None) -> bool:
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

    def _seconds_to_next_look(self, listing: Listing, readiness: Readiness, now: float, rest: float) -> list[float]:
        waits = [] if readiness.again_in is None else [readiness.again_in + 0.01]
        if max(now - listing.touched_ns / 1e9, rest) < PENDING_PATIENCE_SECONDS:
            far = min(FAR_PENDING_SECONDS, self.check_interval_seconds)
            waits.append(far if self._saves.far else PENDING_SECONDS)
        return waits

    def _wanted_names(self) -> list[tuple[int, str]]:
        """Wanted iteration directories, highest iteration first."""
        found = [(iteration_of(name, self.model_type), name) for name in self._saves.names()]
        return sorted(((i, name) for i, name in found if i is not None and self.wanted(i)), reverse=True)

    def _look(self, name: str, now: float) -> tuple[Place, Listing, Inspection]:
        directory, listing = self._saves.look(name)
        before = self._known.get(name)
        if before is not None and before[0] == listing:
            # What was found torn is read again for a while: a clock tick may hide that its writer went on.
            settled = now - listing.touched_ns / 1e9 > TORN_SECONDS
            if not before[1].problem or (settled and before[1].fingerprint):
                return directory, *before
        return directory, listing, inspect(directory, listing)

    def _checkpoint(self, iteration: int, directory: Place, inspection: Inspection) -> Checkpoint:
        per_iteration = self.token_per_iteration
        fingerprint = inspection.fingerprint
        path = (
            self.copies / f"iter_{iteration:07d}-{fingerprint[:8]}" if isinstance(directory, StoredPlace) else directory
        )
        return Checkpoint(
            model=self.model,
            iteration=iteration,
            path=path,
            format=inspection.format,
            fingerprint=fingerprint,
            tokens=None if per_iteration is None else iteration * per_iteration,
            url=str(directory) if isinstance(directory, StoredPlace) else "",
        )
