"""Keeping HELM off standard output and inside its time limit, and telling which file it lacks."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from autoeval.causes import causes

_LOGGER = logging.getLogger("autoeval.helm")

_Result = TypeVar("_Result")


class _LogStream(io.TextIOBase):
    """A text stream whose lines go to the logger."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                _LOGGER.debug("%s", line.rstrip())
        return len(text)

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """HELM's prints (and nltk's and progress bars) go to the logger ``autoeval.helm`` as debug messages.

    HELM's own logger, ``helm``, keeps warnings and errors unless we debug.
    """
    helm_logger = logging.getLogger("helm")
    level = helm_logger.level
    if level == logging.NOTSET and not _LOGGER.isEnabledFor(logging.DEBUG):
        helm_logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(_LogStream()), contextlib.redirect_stderr(_LogStream()):
            yield
    finally:
        helm_logger.setLevel(level)


class HelmTimeoutError(TimeoutError):
    """A run took longer than its limit."""


class _Expired(BaseException):
    """Raised by the alarm. Not an ``Exception``: HELM catches those, waits and tries again."""


def limited(seconds: float | None, what: str, work: Callable[[], _Result], *, shown: float | None = None) -> _Result:
    """What ``work`` returns. Raises ``HelmTimeoutError`` when it takes longer than ``seconds`` (``None``: no limit).

    ``shown``: the limit that the message tells, when ``seconds`` is what is left of it.

    In the main thread an interval timer interrupts even a loop that never ends. In another thread the exception is
    sent to the thread (CPython), and arrives when the C function it is in, if any, returns.

    This is no context manager: an interruption comes between any two instructions, also those that leave a ``with``
    block, and there nobody would catch it.
    """
    if seconds is None:
        return work()
    in_main_thread = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
    try:
        return (_by_alarm if in_main_thread else _by_timer)(seconds, work)
    except _Expired:
        raise HelmTimeoutError(f"{what}: not finished after {shown or seconds:g} s, the limit for one run") from None


def _by_timer(seconds: float, work: Callable[[], _Result]) -> _Result:
    target, lock, finished, sent = threading.get_ident(), threading.Lock(), False, False

    def expire() -> None:
        nonlocal sent
        with lock:
            if not finished:
                sent = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(target), ctypes.py_object(_Expired))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    try:
        timer.start()
        return work()
    finally:
        timer.cancel()
        with lock:
            finished = True
        if sent:  # and not raised yet: it is taken back
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(target), None)


def _by_alarm(seconds: float, work: Callable[[], _Result]) -> _Result:
    armed = True

    def expire(signal_number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise _Expired

    previous_handler = signal.signal(signal.SIGALRM, expire)
    started = time.monotonic()
    outer = interval = 0.0
    try:
        try:
            outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
            return work()
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        if outer:  # somebody else's timer was running: it goes on
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - started), 0.001), interval)


@contextlib.contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Python's and NumPy's global generators start at ``seed`` inside the block and go on as before after it.

    Some scenarios draw from them; a run's samples must not depend on what ran before it.
    """
    import numpy

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def missing_file(error: BaseException) -> tuple[Path, str] | None:
    """(file, address it could be fetched from) when ``error`` is HELM's failing to get a data file, else ``None``.

    HELM's own message names only the address, or not even that; the path is in the frame that tried the download.
    """
    for current in causes(error):
        if isinstance(current, FileNotFoundError) and current.filename:
            return Path(os.fsdecode(current.filename)), ""
        trace: TracebackType | None = current.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if frame.f_code.co_name == "ensure_file_downloaded" and "target_path" in frame.f_locals:
                return Path(frame.f_locals["target_path"]), str(frame.f_locals.get("source_url", ""))
            trace = trace.tb_next
    return None
