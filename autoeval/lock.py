"""One daemon per work directory.

``daemon.lock`` says who has it: process, host, when the process began. Where the file system has ``flock`` the operating
system releases it, however the process ends, and what the file says is for people. Some network file systems have none,
or one that other hosts do not see: then the file itself decides, and the heartbeat of the one that it names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.heartbeat import ago, read_heartbeat
from autoeval.runners.processes import Identity, from_json, identify
from autoeval.yaml_file import ConfigError
from recorder.files import write_atomic

logger = logging.getLogger(__name__)

LOCK = "daemon.lock"
_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
WITHOUT_FLOCK_SECONDS = 1.0  # two that start at the same moment: the one that wrote last has it


@dataclass(frozen=True)
class Holder:
    """``job`` is the Slurm job that the daemon runs in, if any."""

    process: Identity
    job: str = ""

    def __str__(self) -> str:
        in_job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process.pid} on host {self.process.host}{in_job}"


class WorkDirectoryLock:
    """Held for the life of the process. ``keeps`` finds out whether it still is."""

    def __init__(self, work_dir: Path):
        """Raises ``ConfigError`` naming the holder's process and host when another daemon holds the directory."""
        self.work_dir = work_dir
        self.path = work_dir / LOCK
        me = identify(os.getpid())
        assert me is not None
        self._me = Holder(me, os.environ.get("SLURM_JOB_ID", ""))
        self._file: Any = None
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            self._close()
            raise ConfigError(f"{work_dir}: the work directory cannot be written: {error.strerror}") from error
        except ConfigError:
            self._close()
            raise

    def _acquire(self) -> None:
        while True:
            self._file = self.path.open("a+", encoding="utf-8")
            locked = self._flock()
            if not locked or self._is_the_file():
                break
            self._close()  # somebody cleared the lock between the two steps
        former = _holder(self.path)
        if former is not None and former != self._me:
            self._refuse_or_take_over(former, locked)
        content = json.dumps(self._me.process.as_json() | {"job": self._me.job})
        if locked:
            self._file.truncate(0)
            self._file.write(content)
            self._file.flush()
            return
        logger.warning("%s: this file system has no locks: who is at work is read from %s", self.work_dir, LOCK)
        write_atomic(self.path, content)
        time.sleep(WITHOUT_FLOCK_SECONDS)
        if (now := _holder(self.path)) != self._me:
            raise ConfigError(f"{self.work_dir}: another daemon was started at the same moment: {now}")

    def _flock(self) -> bool:
        """False where the file system has no such thing. Raises ``ConfigError`` when another process has the lock."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(self._at_work(_holder(self.path))) from None
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return False
            raise
        return True

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _at_work(self, holder: Holder | None) -> str:
        who = "a process that has not said who it is" if holder is None else str(holder)
        beat = read_heartbeat(self.work_dir)
        known = (
            f"; {beat.state}, last sign of life {ago(beat.age)} ago"
            if beat and holder and beat.process == holder.process
            else ""
        )
        return f"{self.work_dir}: another daemon is at work here: {who}{known}"

    def _refuse_or_take_over(self, former: Holder, locked: bool) -> None:
        """``former`` did not end in order, or is at work where the lock cannot be seen."""
        if former.process.here:
            if not locked and former.process.alive:
                raise ConfigError(self._at_work(former))
            logger.warning("%s: the lock of %s, which is gone, is taken over", self.work_dir, former)
            return
        if former.job and former.job == self._me.job:
            logger.warning("%s: %s was started again here: its lock is taken over", self.work_dir, former)
            return
        beat = read_heartbeat(self.work_dir)
        if beat is not None and beat.process == former.process and not beat.silent:
            raise ConfigError(self._at_work(former))
        silent = (
            f"no sign of life for {ago(beat.age)}" if beat and beat.process == former.process else "no sign of life"
        )
        raise ConfigError(
            f"{self.work_dir}: the lock of {former} looks stale ({silent}), but another host's processes cannot be "
            f"seen from here; when it has ended, clear the lock: rm {self.path}"
        )

    def keeps(self) -> bool:
        """Whether the directory is still ours: nobody has cleared the lock and taken it. A file that is just gone, by
        some clean-up, is written again. A file system that does not let us look or write says nothing of another."""
        holder = _holder(self.path)
        if holder is not None:
            return holder == self._me
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.read_bytes()  # before ours is closed: what cannot be read now is locked still
            self._close()
            self._acquire()
        except ConfigError:
            return False
        except OSError as error:
            logger.warning("%s: %s", self.path, error.strerror)
            return True
        logger.warning("%s had vanished, and was written again", self.path)
        return True

    def release(self) -> None:
        """The file stays, empty: nobody has it."""
        if self._file is not None and not self._file.closed:
            try:
                if _holder(self.path) == self._me:
                    os.truncate(self.path, 0)
            except OSError as error:
                logger.debug("%s: %s", self.path, error)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take would be written again
                self._file.close()


def _holder(path: Path) -> Holder | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Holder(from_json(content), str(content.get("job", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
