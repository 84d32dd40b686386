"""Processes of this machine, told apart from any others that ever have their number, and ended with all they started.

A pid alone names nothing: numbers are given again, after a reboot at once. With the moment of its start, the machine's
start and the machine's name it names one process for ever. See proc(5), pidfd_open(2), prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_NO_PIDFD_SECONDS = 0.5  # between two looks, on kernels before 5.3
_REAP_SECONDS = 10.0  # a killed process may hang in the kernel, with a GPU that does not answer


@dataclass(frozen=True)
class Identity:
    """``started``: clock ticks after the machine's own start, of which ``boot`` is the id."""

    pid: int
    started: int
    boot: str
    host: str

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it runs, on this machine; a zombie does not."""
        return identify(self.pid) == self

    def signal(self, number: int) -> bool:
        """Send it a signal; whether it was there. Never another process that has its number."""
        with contextlib.suppress(OSError), _pidfd(self.pid) as descriptor:
            if not self.alive:
                return False
            if descriptor is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(descriptor, number)
            return True
        return False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(content: Mapping[str, Any]) -> Identity:
    return Identity(int(content["pid"]), int(content["started"]), str(content["boot"]), str(content["host"]))


def identify(pid: int) -> Identity | None:
    """The process that has this number now, or ``None``."""
    if not _PROC.exists():  # not Linux
        return _identify_elsewhere(pid)
    try:
        # The second field is the program's name in brackets, which may hold spaces and brackets.
        fields = (_PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZXx":
        return None
    return Identity(pid, int(fields[19]), boot_id(), socket.gethostname())


def _identify_elsewhere(pid: int) -> Identity | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Identity(pid, round(process.create_time() * 100), boot_id(), socket.gethostname())
    except psutil.NoSuchProcess:
        return None


def boot_id() -> str:
    if not _PROC.exists():
        return str(round(psutil.boot_time()))
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@contextlib.contextmanager
def _pidfd(pid: int) -> Any:
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for_end(of: Iterable[Identity], seconds: float, also: Iterable[int] = ()) -> None:
    """Until one of them has ended, one of the descriptors ``also`` can be read, or the seconds are over."""
    poller, opened = select.poll(), []
    for descriptor in also:
        poller.register(descriptor, select.POLLIN)
    try:
        for one in of:
            try:
                opened.append(os.pidfd_open(one.pid))
            except AttributeError:
                seconds = min(seconds, _NO_PIDFD_SECONDS)
                continue
            except ProcessLookupError:
                return
            if not one.alive:
                return
            poller.register(opened[-1], select.POLLIN)
        poller.poll(max(0.0, seconds) * 1000)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def adopt_orphans() -> None:
    """From now on whatever a descendant leaves behind becomes a child of this process, and not of process 1; on Linux."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def kill_descendants(reaped: Callable[[int, int], None], *, but: Iterable[int] = ()) -> list[int]:
    """SIGKILL to all that this process has started (``adopt_orphans``), whatever session they made for themselves.

    ``reaped`` is told pid and wait status of each child. Direct children in ``but`` are left, with what they started.
    What is still there after ten seconds, because it hangs in the kernel, is returned.
    """
    deadline = time.monotonic() + _REAP_SECONDS
    spared = set(but)
    while True:
        reap(reaped)
        left = _descendants(spared)
        if not left or time.monotonic() > deadline:
            return left
        # They are our descendants: one that dies is somebody's zombie until it is reaped, its number not given again.
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for_end([one for pid in left if (one := identify(pid)) is not None], 0.2)


def _descendants(but: set[int]) -> list[int]:
    """Without zombies; without the children ``but`` and what they have started."""
    found: list[int] = []
    for child in psutil.Process().children():
        if child.pid in but:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [child, *child.children(recursive=True)]
            found += [one.pid for one in family if identify(one.pid) is not None]
    return found


def reap(reaped: Callable[[int, int], None]) -> None:
    """Collect all children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        reaped(pid, status)


class Wakeups:
    """Signals as something that can be waited for together with descriptors and a time. In the main thread only."""

    def __init__(self, *numbers: int) -> None:
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)  # gets the number of each as a byte

    def wait(self, seconds: float | None, *descriptors: int) -> set[int]:
        """Which signals have arrived since the last call; at once when there are some, or a descriptor can be read."""
        poller = select.poll()
        for descriptor in (self._read, *descriptors):
            poller.register(descriptor, select.POLLIN)
        poller.poll(None if seconds is None else max(0.0, seconds) * 1000)
        arrived: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while some := os.read(self._read, 4096):
                arrived |= set(some)
        return arrived

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)
