"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell that starts the tests in the background has SIGINT ignored, and so would have every program that they
    start and end by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
