"""Checkpoints of a store on their way to the disk here: one thread, one checkpoint at a time, in the order of their turns.

A copy is kept until its checkpoint has been evaluated, and through a restart. What cannot be copied now is tried again
and again, ever more seldom: a store that is away for a night costs a night.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autoeval.checkpoints import (
    Checkpoint,
    copies_in,
    is_copied,
    plan_copy,
    read_origin,
    remove_copy,
)
from autoeval.storage import Aborted, ObjectStore, StorageError
from autoeval.tasks.converted import RESERVE_BYTES, NoRoomError

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 300.0

Outcome = Exception | None


class Copies:
    """``most`` copies are on the disk at a time, of ``budget`` bytes at most (``None``: what is free).

    ``want``, ``drop``, ``ended`` and ``close`` are for one thread. ``on_change`` is called from another one when
    ``ended`` has something to tell.
    """

    def __init__(
        self, store: ObjectStore, staging: Path, *, parallel: int = 4, most: int = 2, budget: int | None = None
    ) -> None:
        self._store, self._staging = store, staging
        self._parallel, self._most, self._budget = parallel, most, budget
        self.on_change: Callable[[], None] = lambda: None
        self._state = threading.Condition()  # guards what follows
        self._wanted: list[Checkpoint] = []
        self._held: set[Path] = set()
        self._ended: list[tuple[Checkpoint, Outcome]] = []
        self._current: Checkpoint | None = None
        self._dropped = self._closed = False  # dropped: the current one
        self._not_before = 0.0
        self._failures = 0
        self._refused: dict[Path, int] = {}  # how often, by what lasts (an archived object): others go first
        self._thread: threading.Thread | None = None

    def find(self, fingerprint: str) -> tuple[Path, str] | None:
        """The whole copy of a checkpoint that an earlier process made, and its format."""
        for directory in copies_in(self._staging):
            origin = read_origin(directory)
            if origin is not None and origin.whole and origin.fingerprint == fingerprint:
                return directory, origin.format
        return None

    def sweep(self, keep: set[Path]) -> None:
        """Remove what an earlier process left and nobody wants any more."""
        for directory in copies_in(self._staging):
            if directory not in keep:
                remove_copy(directory)

    def hold(self, checkpoint: Checkpoint) -> bool:
        """Count a copy that is here already; whether it is."""
        if is_copied(checkpoint):
            with self._state:
                self._held.add(checkpoint.path)
            return True
        return False

    def want(self, checkpoints: Sequence[Checkpoint]) -> None:
        """What is to be copied, in this order."""
        with self._state:
            self._wanted = [one for one in checkpoints if one.path not in self._held]
            if self._thread is None and self._wanted and not self._closed:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()
            self._state.notify_all()

    def ended(self) -> list[tuple[Checkpoint, Outcome]]:
        """What came of copies since the last call: ``None``, or an error. After a ``StorageError`` or an ``OSError`` it is
        tried again; after others not."""
        with self._state:
            found, self._ended = self._ended, []
        return found

    def drop(self, checkpoint: Checkpoint) -> None:
        """The copy is no longer needed, whether it is whole or not. After ``close`` it stays."""
        with self._state:
            if self._closed:
                return
            self._wanted = [one for one in self._wanted if one.path != checkpoint.path]
            if self._current is not None and self._current.path == checkpoint.path:
                self._dropped = True  # the thread removes it
                return
        remove_copy(checkpoint.path)
        with self._state:  # not before: until it is gone, others wait for its room
            self._held.discard(checkpoint.path)
            self._refused.pop(checkpoint.path, None)
            self._not_before = 0.0
            self._state.notify_all()

    def close(self) -> None:
        """Stop within a request; what was copied stays, and the next start goes on from there."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            outcome: Outcome = None
            try:
                self._copy(checkpoint)
            except Aborted:
                with self._state:
                    self._current = None
                    removed, self._dropped = self._dropped, False
                if removed:
                    remove_copy(checkpoint.path)
                continue
            except Exception as error:  # a thread that dies would leave the checkpoint waiting for ever
                outcome = error
            self._note(checkpoint, outcome)
            self.on_change()

    def _next(self) -> Checkpoint | None:
        with self._state:
            while not self._closed:
                wait = self._not_before - time.monotonic()
                if self._wanted and wait <= 0 and len(self._held) < self._most:
                    self._current = min(self._wanted, key=lambda one: self._refused.get(one.path, 0))
                    return self._current
                self._state.wait(wait if self._wanted and wait > 0 else None)
        return None

    def _copy(self, checkpoint: Checkpoint) -> None:
        copying = plan_copy(checkpoint, self._store, parallel=self._parallel, stop=self._is_to_stop)
        copying.transfer.remove_unfinished()  # its room is in ``needed`` again
        self._check_room(checkpoint, copying.needed)
        logger.info(
            "%s iteration %d: %.3g GB of %s are copied", checkpoint.model, checkpoint.iteration, copying.needed / 1e9,
            checkpoint.url,
        )  # fmt: skip
        started = time.monotonic()
        copying.run()
        seconds = time.monotonic() - started
        logger.info("%s iteration %d: copied in %.1f s", checkpoint.model, checkpoint.iteration, seconds)

    def _is_to_stop(self) -> bool:
        return self._closed or self._dropped

    def _check_room(self, checkpoint: Checkpoint, needed: int) -> None:
        with self._state:  # before the room is measured: one of them may be removed meanwhile
            waits = bool(self._held)
        self._staging.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._staging).free - RESERVE_BYTES
        if self._budget is not None:
            taken = sum(_blocks(directory) for directory in copies_in(self._staging))
            free = min(free, self._budget - taken)
        if needed > free:
            message = (
                f"{checkpoint.url}: its copy takes {needed / 1e9:.3g} GB more, and {max(0, free) / 1e9:.3g} GB may be taken "
                f"in {self._staging} (copies.disk_gb, free disk)"
            )
            # There will be room when one of those here has been evaluated.
            raise OSError(errno.ENOSPC, message) if waits else NoRoomError(message)

    def _note(self, checkpoint: Checkpoint, outcome: Outcome) -> None:
        with self._state:
            self._current = None
            if self._dropped:
                self._dropped = False
                remove_copy(checkpoint.path)
                return
            if outcome is None:
                self._held.add(checkpoint.path)
            if isinstance(outcome, (StorageError, OSError)):
                self._failures += 1
                wait = min(FIRST_WAIT_SECONDS * 2 ** min(self._failures - 1, 10), LONGEST_WAIT_SECONDS)
                self._not_before = time.monotonic() + wait
                self._store.forget()  # credentials may be renewed meanwhile
                if isinstance(outcome, StorageError) and outcome.lasting:
                    self._refused[checkpoint.path] = self._refused.get(checkpoint.path, 0) + 1
            else:
                self._failures, self._not_before = 0, 0.0
                self._refused.pop(checkpoint.path, None)
                self._wanted = [one for one in self._wanted if one.path != checkpoint.path]
            self._ended.append((checkpoint, outcome))


def _blocks(directory: Path) -> int:
    """Bytes that the files below take on the disk: those of copies have holes."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
