"""How the daemon ends what it has started: asked first, insisted on soon, and nothing that those started is left."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

STOP_SECONDS = 4.5  # from the signal to the end of the last process: five are promised


def started_by(pid: int) -> list[int]:
    """Numbers of the living descendants of ``pid``, whatever sessions they made for themselves."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def kill(pids: Iterable[int]) -> None:
    """SIGKILL for each and for all that they have started."""
    for pid in [each for one in pids for each in (one, *started_by(one))]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end(process: subprocess.Popen[str], *, wait_seconds: float, term_seconds: float) -> None:
    """Wait for ``process`` so long, ask it by SIGTERM, wait again, insist."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_seconds)
        return
    children = started_by(process.pid)  # of a process that has ended nobody can tell them any more
    process.terminate()
    try:
        process.wait(term_seconds)
    except subprocess.TimeoutExpired:
        kill([process.pid])
        process.wait()
    kill(children)


def side_by_side(*ends: Callable[[], None]) -> None:
    """Call all: together they take no longer than the longest of them. Errors are logged."""
    threads = [threading.Thread(target=_logging_errors, args=(one,), daemon=True) for one in ends]
    for thread in threads:
        thread.start()
    until = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _logging_errors(one: Callable[[], None]) -> None:
    try:
        one()
    except Exception:
        logger.exception("while ending")
