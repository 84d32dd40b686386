"""Ends this process when it has not been alive for too long: a client that hangs is killed and tried again.

``faulthandler`` watches from a thread of its own that needs nothing of Python, so it works whatever hangs; it writes
where every thread was to standard error and ends the process with code 1.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STEP_SECONDS = 900.0  # far above the sum of the client's own time limits for one run

_armed = False


@contextmanager
def watched() -> Iterator[None]:
    """In the block ``alive`` must be called at least every ``STEP_SECONDS``."""
    global _armed
    _armed = True
    alive()
    try:
        yield
    finally:
        _armed = False
        faulthandler.cancel_dump_traceback_later()


def alive() -> None:
    """Begin the time anew. Does nothing where nobody watches."""
    if _armed:
        faulthandler.dump_traceback_later(STEP_SECONDS, exit=True, file=sys.__stderr__ or 2)
