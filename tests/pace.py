"""What a promise of seconds means on a machine that is busy with other things as well."""

from __future__ import annotations

import threading
import time
from types import TracebackType

_WORK, _REST = 0.01, 0.04  # seconds of work between two rests: a fifth of one processor at most


class Pace:
    """While the block runs, how many times longer than alone does a piece of work take here?

    A thread works for moments of 10 ms of its own processor time and looks how long each has really taken. A promised
    time is then measured with the same yardstick: ``takes(0.5)`` is how long half a second of work took meanwhile.
    """

    def __init__(self) -> None:
        self._end = threading.Event()
        self._worked = self._took = 0.0
        self._thread = threading.Thread(target=self._measure, name="pace", daemon=True)

    def __enter__(self) -> Pace:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def takes(self, seconds: float) -> float:
        """Of wall time; what it tells during the block is of the part that is over."""
        return seconds * max(1.0, self._took / self._worked if self._worked else 1.0)

    def _measure(self) -> None:
        while True:
            worked, began = time.thread_time(), time.monotonic()
            while (done := time.thread_time() - worked) < _WORK:
                pass
            self._took, self._worked = self._took + time.monotonic() - began, self._worked + done
            if self._end.wait(_REST):
                return
