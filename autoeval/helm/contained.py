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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

_LOGGER = logging.getLogger("autoeval.helm")


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


@contextlib.contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise ``HelmTimeoutError`` when the block runs longer than ``seconds`` (``None``: no limit).

    In the main thread an interval timer interrupts even a loop that never ends. In another thread the exception is
    sent to the thread (CPython), and arrives when the C function it is in, if any, returns.
    """
    if seconds is None:
        yield
    elif threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM"):
        with _alarm(seconds, what):
            yield
    else:
        with _thread_limit(seconds, what):
            yield


@contextlib.contextmanager
def _thread_limit(seconds: float, what: str) -> Iterator[None]:
    target, lock, finished = threading.get_ident(), threading.Lock(), False

    def expire() -> None:
        with lock:
            if not finished:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(target), ctypes.py_object(_Expired))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            timer.cancel()
            with lock:
                finished = True
    except _Expired:
        raise HelmTimeoutError(_late(what, seconds)) from None


@contextlib.contextmanager
def _alarm(seconds: float, what: str) -> Iterator[None]:
    armed = True

    def expire(signal_number: int, frame: FrameType | None) -> None:
        if armed:
            raise _Expired

    previous_handler = signal.signal(signal.SIGALRM, expire)
    started = time.monotonic()
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
        armed = False
    except _Expired:
        raise HelmTimeoutError(_late(what, seconds)) from None
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        if outer:  # somebody else's timer was running: it goes on
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - started), 0.001), interval)


def _late(what: str, seconds: float) -> str:
    return f"{what}: not finished after {seconds:g} s, the limit for one run"


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
    for current in _chain(error):
        if isinstance(current, FileNotFoundError) and current.filename:
            return Path(os.fsdecode(current.filename)), ""
        trace: TracebackType | None = current.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if frame.f_code.co_name == "ensure_file_downloaded" and "target_path" in frame.f_locals:
                return Path(frame.f_locals["target_path"]), str(frame.f_locals.get("source_url", ""))
            trace = trace.tb_next
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
