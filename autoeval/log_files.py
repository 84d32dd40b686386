"""Log files of limited size: ``worker.log``, then ``worker.log.1`` … ``worker.log.<keep>``, the newest first.

Nothing is lost at a rotation: a file is renamed, never copied and cut, so a process that holds the old one (a child
that has inherited it) writes on into what is now ``.1``. Whoever writes a log also rotates it, and looks
whether its name still leads to it, so logrotate may rename (``create``) or cut (``copytruncate``) it without a signal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from logging.handlers import BaseRotatingHandler
from pathlib import Path

LOOK_SECONDS = 2.0  # between two looks at the size of a file that is written by C libraries and child processes too
OWN_LOG = "AUTOEVAL_OWN_LOG"  # tells a process that its standard error is a log file, and the file's limits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogLimits:
    """A file is rotated at ``max_bytes``; of former ones ``keep`` stay. Both are at least 1."""

    max_bytes: int = 20_000_000
    keep: int = 5


def rotate(path: Path, keep: int) -> None:
    """Rename ``path`` to ``path.1``, that to ``path.2``, …; what would be beyond ``path.<keep>`` is removed.

    A ``path`` that is not there is no error. Raises ``OSError``; then ``path`` is where it was.
    """
    for former in path.parent.glob(f"{path.name}.*"):
        number = former.name.removeprefix(f"{path.name}.")
        if number.isdigit() and int(number) >= keep:
            former.unlink(missing_ok=True)
    for place in range(keep - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            _numbered(path, place).replace(_numbered(path, place + 1))
    with contextlib.suppress(FileNotFoundError):
        path.replace(_numbered(path, 1))


def rotate_if_large(path: Path, limits: LogLimits) -> None:
    """Before ``path`` is opened for a new process. What goes wrong is logged: a log too long is better than none."""
    try:
        if path.stat().st_size >= limits.max_bytes:
            rotate(path, limits.keep)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s is not rotated: %s", path, error.strerror)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class RotatingLog(BaseRotatingHandler):
    """A handler for one process's log: rotates by size, and opens the file anew when its name leads elsewhere."""

    def __init__(self, path: Path, limits: LogLimits):
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path), mode="a", encoding="utf-8")
        self.path, self.limits = path, limits

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        if self.stream is None:  # a new file could not be opened the last time
            return True
        mine = os.fstat(self.stream.fileno())
        return not _leads_to(self.path, mine) or mine.st_size >= self.limits.max_bytes

    def doRollover(self) -> None:
        if self.stream is not None:
            if _leads_to(self.path, os.fstat(self.stream.fileno())):
                rotate(self.path, self.limits.keep)
            stream = self._open()  # before the old one is closed: without room for a new file it is written on
            self.stream.close()
            self.stream = stream
        else:
            self.stream = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.shouldRollover(record):
                self.doRollover()
        except OSError:
            pass  # a full disk: the old file, wherever it is by now, takes what it can
        logging.FileHandler.emit(self, record)


def own_log(path: Path, limits: LogLimits) -> dict[str, str]:
    """The environment of a process whose standard error is ``path``, so that ``keep_own_log`` knows it."""
    return {OWN_LOG: json.dumps({"path": str(path), **asdict(limits)})}


def keep_own_log(limits: LogLimits | None = None) -> OwnLog | None:
    """Begin to rotate the file that is this process's standard error, if it was started with ``own_log``, or with the
    file's path alone in the variable (a batch script, a shell): then ``limits`` hold.

    The variable is removed from the environment: children write to the same file, one rotates it.
    """
    told = os.environ.pop(OWN_LOG, "")
    if not told:
        return None
    if told.startswith("{"):
        content = json.loads(told)
        log = OwnLog(Path(content["path"]), LogLimits(content["max_bytes"], content["keep"]))
    else:
        log = OwnLog(Path(told).absolute(), limits or LogLimits())
    if not log.is_mine():
        return None
    log.start()
    return log


class OwnLog:
    """This process's standard error (and whatever else of 1 and 2 leads to the same file), kept to a size.

    The descriptors are replaced in one step (dup2), so Python, C libraries and later children all write to the new file
    from one write to the next.
    """

    def __init__(self, path: Path, limits: LogLimits):
        self.path, self.limits = path, limits
        self._ended = threading.Event()
        self._rotating = threading.Lock()

    def is_mine(self) -> bool:
        return _leads_to(self.path, os.fstat(2))

    def start(self) -> None:
        threading.Thread(target=self._watch, name="own log", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(OSError):  # no room for a new file now: the old one is written on
                self.look()

    def look(self) -> None:
        """Rotate when the file is large; open it anew when its name leads elsewhere. Raises ``OSError``."""
        with self._rotating:
            self._look()

    def _look(self) -> None:
        mine = os.fstat(2)
        there = _leads_to(self.path, mine)
        if there and mine.st_size < self.limits.max_bytes:
            return
        if there:
            rotate(self.path, self.limits.keep)
        new = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            for descriptor in (1, 2):
                held = os.fstat(descriptor)
                if (held.st_dev, held.st_ino) == (mine.st_dev, mine.st_ino):
                    os.dup2(new, descriptor)
        finally:
            os.close(new)


def _leads_to(path: Path, held: os.stat_result) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
