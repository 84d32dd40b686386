"""The work directories of a daemon: locked, logged to, and with a heartbeat in them, from before the first look at the
checkpoints to the end of the process."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

from autoeval.heartbeat import HEARTBEAT, Doing, Heart
from autoeval.lock import LOCK, WorkDirectoryLock
from autoeval.log_files import LogLimits, RotatingLog
from autoeval.yaml_file import ConfigError


class WorkDirectories:
    """A context; in the end all are let go of."""

    def __init__(self) -> None:
        self.heart = Heart()
        self._held: dict[Path, tuple[WorkDirectoryLock, RotatingLog]] = {}

    def hold(self, limits: Mapping[Path, LogLimits]) -> None:
        """Lock those that are not held yet; the logs of all have these limits from now on. Raises ``ConfigError``: then
        none is held that was not."""
        new: dict[Path, WorkDirectoryLock] = {}
        try:
            for directory in limits:
                if directory not in self._held:
                    new[directory] = WorkDirectoryLock(directory)
        except ConfigError:
            for lock in new.values():
                lock.release()
            raise
        for directory, lock in new.items():
            for left in (*directory.glob(".settings.json.*.tmp"), *directory.glob(f".{LOCK}.*.tmp")):
                left.unlink(missing_ok=True)  # of one that was killed while it wrote: who wrote it held the lock
            self._held[directory] = (lock, _log_to(directory / "logs" / "daemon.log", limits[directory]))
        for directory, those in limits.items():
            self._held[directory][1].limits = those
        self.heart.directories = tuple(self._held)

    def keep_only(self, wanted: Collection[Path]) -> None:
        for directory in [directory for directory in self._held if directory not in wanted]:
            self._let_go_of(directory)

    def check(self) -> None:
        """Raises ``ConfigError`` when somebody has cleared a lock and another daemon has taken it."""
        for directory, (lock, _) in self._held.items():
            if not lock.keeps():
                raise ConfigError(
                    f"{directory}: the lock was cleared and another daemon is at work here: this one ends"
                )

    def _let_go_of(self, directory: Path) -> None:
        lock, handler = self._held.pop(directory)
        self.heart.directories = tuple(self._held)
        if lock.keeps():
            last = Heart()
            last.directories = (directory,)
            last.beat(Doing("ended"))
        (directory / f".{HEARTBEAT}.tmp").unlink(missing_ok=True)
        logging.getLogger().removeHandler(handler)
        handler.close()
        lock.release()

    def __enter__(self) -> WorkDirectories:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep_only(())


def _log_to(path: Path, limits: LogLimits) -> RotatingLog:
    handler = RotatingLog(path, limits)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler
