"""SIGTERM and SIGINT end the daemon, SIGHUP has it read its configuration again.

However busy the main thread is, in a call that does not return as well, nothing is alive ``STOP_SECONDS`` after a signal
to end: a thread sees to it. Ending by force is safe, for whatever is on disk is whole.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from autoeval.ending import STOP_SECONDS, kill, started_by

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM)
TELL_SECONDS = 0.2  # for the last line of the log


class Terminated(KeyboardInterrupt):
    """A signal to end, where nobody waits for messages: before the loop begins, and between two of its lives."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """A context: signals are handled in it. Use it in the main thread.

    ``on_stop`` is called with a signal's number, ``on_reload`` without anything, both in the main thread between two
    of its steps; without ``on_stop`` ``Terminated`` is raised there, without ``on_reload`` the wish is kept in
    ``reload_wanted``.
    """

    def __init__(self) -> None:
        self.on_stop: Callable[[int], None] | None = None
        self.on_reload: Callable[[], None] | None = None
        self.reload_wanted = False
        self._previous: dict[int, Any] = {}
        self._ended = threading.Event()
        self._numbers: tuple[socket.socket, socket.socket] | None = None
        self._former_wakeup = -1

    def __enter__(self) -> Signals:
        # Numbers of signals arrive in the thread at once, whatever the main thread is at.
        self._numbers = socket.socketpair()
        for end in self._numbers:
            end.setblocking(False)
        self._former_wakeup = signal.set_wakeup_fd(self._numbers[1].fileno(), warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._see_to_it, args=(self._numbers[0],), name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        signal.set_wakeup_fd(self._former_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        assert self._numbers is not None
        self._numbers[1].close()  # ends the thread's wait

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            if self.on_reload is None:
                self.reload_wanted = True
            else:
                self.on_reload()
        elif self.on_stop is None:
            raise Terminated(number)
        else:
            self.on_stop(number)

    def _see_to_it(self, numbers: socket.socket) -> None:
        # Now: when everything hangs, the disk that it would be imported from may hang too.
        import psutil  # noqa: F401 - what ends processes by force imports it

        numbers.setblocking(True)
        with numbers:
            while received := numbers.recv(1):
                if received[0] in STOPPING:
                    if not self._ended.wait(STOP_SECONDS):
                        _end_by_force(received[0])
                    return


def _end_by_force(number: int) -> None:
    # In a thread: the main thread may be stuck in the log itself, in a full pipe say, and hold its lock.
    telling = threading.Thread(target=_tell, args=(number,), daemon=True)
    telling.start()
    kill(started_by(os.getpid()))
    telling.join(TELL_SECONDS)
    os._exit(128 + number)


def _tell(number: int) -> None:
    logger.error(
        "%s: not everything has ended after %.1f s and is killed; what is on disk is whole, starting again goes on from "
        "here",
        signal.Signals(number).name,
        STOP_SECONDS,
    )
