"""What becomes of the processes of a schedule, and what time they believe it is."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil


class Family:
    """What becomes of this process's children, and of what its descendants leave behind, but for ``spared``."""

    def __init__(self, spared: int):
        from autoeval.runners.processes import adopt_orphans

        adopt_orphans()
        self._spared = spared
        self._ended: dict[int, int] = {}

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._ended[pid] = os.waitstatus_to_exitcode(status)

    def code(self, pid: int) -> int | None:
        """How ``pid`` ended, ``None`` while it lives."""
        self.reap()
        return self._ended.get(pid)

    def members(self) -> list[psutil.Process]:
        """All that live now."""
        self.reap()
        found = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.pid != self._spared and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def left_after(self, seconds: float) -> list[str]:
        """What does not end by itself; it is killed."""
        until = time.monotonic() + seconds
        while left := self.members():
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        told = []
        for one in left:
            with contextlib.suppress(psutil.Error):
                words = " ".join(one.cmdline())[-150:]
                told.append(f"process {one.pid} is left after {seconds:.0f} s: {words} ({one.status()})")
                one.kill()
        return told


def set_clock(file: Path, offset: float) -> None:
    """From now on it is ``offset`` seconds later than it is."""
    file.write_text(f"{offset:+.0f}\n")
