"""Finds complete checkpoints. ``scan`` is the truth; events and the clock only say when to scan again.

watcher.start()
while watcher.wait(timeout=None):
    for checkpoint in watcher.scan().complete: …
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import Any, Literal

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.layout import (
    Inspection,
    Listing,
    Readiness,
    check,
    inspect,
    iteration_of,
    list_files,
    look_at_tracker,
)

logger = logging.getLogger(__name__)

PENDING_SECONDS = 1.0  # between looks while a checkpoint is on its way: some conditions only time fulfils
PENDING_PATIENCE_SECONDS = 120.0  # a save that has not changed for so long is left to events and the interval
LEAST_GAP_SECONDS = 0.2  # between two wake-ups: a save makes thousands of events
TORN_SECONDS = 5.0
_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})  # not "opened": our own reading opens


@dataclass(frozen=True)
class ScanResult:
    """``waiting`` and ``abandoned`` are (iteration, reason). ``abandoned`` also has what is in no supported layout."""

    complete: tuple[Checkpoint, ...] = ()
    waiting: tuple[tuple[int, str], ...] = ()
    abandoned: tuple[tuple[int, str], ...] = ()


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
        self._known: dict[str, tuple[Listing, Inspection]] = {}
        self._changed = threading.Event()
        self._stopped = False
        self._pending = False
        self._last_wake = 0.0
        self._scheduler: Any = None
        self._events: _Events | None = None

    @property
    def save_in_progress(self) -> bool:
        """Whether the last ``scan`` saw a save that is being written: work is coming soon."""
        return self._pending

    def wanted(self, iteration: int) -> bool:
        """Whether ``iteration`` is one of begin, begin + interval, …, end."""
        in_range = iteration >= self.begin and (self.end is None or iteration <= self.end)
        return in_range and (iteration - self.begin) % self.interval == 0

    def scan(self) -> ScanResult:
        """One look at the disk: stats only, except for files that have changed since the last look."""
        tracker = look_at_tracker(self.checkpoint_path)  # first: files that change after it count as newer
        complete: list[Checkpoint] = []
        waiting: list[tuple[int, str]] = []
        abandoned: list[tuple[int, str]] = []
        unfinished: list[Path] = []
        recent = False
        now = time.time()
        known: dict[str, tuple[Listing, Inspection]] = {}
        for iteration, directory in self._directories():
            try:
                listing, inspection = known[directory.name] = self._look(directory, now)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    waiting.append((iteration, f"{directory}: {error.strerror}"))
                continue
            readiness = self._check(directory, tracker, listing, inspection, bool(complete), now)
            if readiness.state == "complete":
                complete.append(self._checkpoint(iteration, directory, inspection))
            elif readiness.state == "incomplete":
                waiting.append((iteration, readiness.reason))
                unfinished.append(directory)
                recent = recent or now - listing.touched_ns / 1e9 < PENDING_PATIENCE_SECONDS
            else:
                abandoned.append((iteration, readiness.reason))
        self._known = known  # what was deleted is forgotten
        self._pending = recent
        if self._events is not None:
            self._events.follow(unfinished)
        return ScanResult(tuple(reversed(complete)), tuple(reversed(waiting)), tuple(reversed(abandoned)))

    def start(self) -> None:
        """Begin to notice changes: file-system events where there are any, the interval everywhere."""
        from apscheduler.schedulers.background import BackgroundScheduler

        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._scheduler = BackgroundScheduler(daemon=True, timezone=timezone.utc)
        self._scheduler.add_job(
            self._changed.set, "interval", seconds=self.check_interval_seconds, coalesce=True, misfire_grace_time=None
        )
        self._scheduler.start()
        self._events = _Events(self.checkpoint_path, self._changed)
        self._events.follow([])
        self._changed.set()

    def stop(self) -> None:
        """End all threads; a ``wait`` in another thread returns False."""
        self._stopped = True
        self._changed.set()
        scheduler, self._scheduler = self._scheduler, None
        events, self._events = self._events, None
        if scheduler is not None:
            scheduler.shutdown(wait=False)
        if events is not None:
            events.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """True when something may have changed, so that a scan is due; False after ``timeout`` seconds or ``stop``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopped:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            # In short steps: whether a checkpoint is pending is known after a scan in another thread.
            due = self._changed.wait(PENDING_SECONDS if remaining is None else min(PENDING_SECONDS, remaining))
            if not due and self._pending:
                due = time.monotonic() - self._last_wake >= PENDING_SECONDS
            if due and not self._stopped:
                gap = self._last_wake + LEAST_GAP_SECONDS - time.monotonic()
                if gap > 0:
                    time.sleep(gap)
                self._changed.clear()
                self._last_wake = time.monotonic()
                return True
        return False

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

    def _check(
        self, directory: Path, tracker: Any, listing: Listing, inspection: Inspection, later: bool, now: float
    ) -> Readiness:
        return check(
            directory,
            tracker,
            model_type=self.model_type,
            listing=listing,
            inspection=inspection,
            later_is_complete=later,
            now=now,
        )

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


class _Events:
    """File-system events for a root that may not exist yet and for the directories that are being written in it."""

    def __init__(self, root: Path, changed: threading.Event):
        self._root = root
        self._changed = changed
        self._watches: dict[Path, tuple[int, Any]] = {}  # path -> (inode, watchdog's watch)
        self._observer: Any = None
        try:
            from watchdog.observers import Observer

            # It tells every event at DEBUG, and calls it an error when a watched directory goes away.
            logging.getLogger("watchdog").setLevel(logging.CRITICAL)
            self._observer = Observer()
            self._observer.daemon = True
            self._observer.start()
        except OSError as error:
            self._give_up(error)

    def follow(self, unfinished: list[Path]) -> None:
        """Watch the root (or its nearest parent that exists) and ``unfinished``, and nothing else."""
        if self._observer is None:
            return
        wanted: dict[Path, int] = {}
        for path in [self._nearest(), *unfinished]:
            try:
                wanted[path] = path.stat().st_ino
            except OSError:
                continue
        for path, (inode, watch) in list(self._watches.items()):
            if wanted.get(path) != inode:  # no longer wanted, or deleted and made anew
                del self._watches[path]
                self._unschedule(watch)
        for path, inode in wanted.items():
            if path not in self._watches and not self._schedule(path, inode):
                return

    def stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(2.0)

    def _nearest(self) -> Path:
        return next(path for path in (self._root, *self._root.parents) if path.is_dir())

    def _schedule(self, path: Path, inode: int) -> bool:
        from watchdog.events import FileSystemEventHandler

        handler = FileSystemEventHandler()
        handler.on_any_event = (  # type: ignore[method-assign]
            self._on_root_event if self._root in (path, *path.parents) else self._on_parent_event
        )
        try:
            self._watches[path] = (inode, self._observer.schedule(handler, str(path), recursive=False))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._give_up(error)
            return False
        self._changed.set()  # what happened between the look and the watch was not reported
        return True

    def _unschedule(self, watch: Any) -> None:
        try:
            self._observer.unschedule(watch)
        except (KeyError, OSError) as error:  # its directory is gone, and watchdog has dropped it already
            logger.debug("%s: %s", watch, error)

    def _on_root_event(self, event: Any) -> None:
        if event.event_type in _CHANGES:
            self._changed.set()

    def _on_parent_event(self, event: Any) -> None:
        """A parent may be busy with other things (/tmp): only the next step towards the root matters."""
        paths = [Path(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]
        if event.event_type in _CHANGES and any(path in (self._root, *self._root.parents) for path in paths):
            self._changed.set()

    def _give_up(self, error: OSError) -> None:
        logger.warning("no file-system events for %s (%s): only the check interval is left", self._root, error)
        observer, self._observer = self._observer, None
        if observer is not None and observer.is_alive():
            observer.stop()
