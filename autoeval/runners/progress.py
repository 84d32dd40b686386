"""What a worker is at, by what it tells, and for how long it may be at it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

CONVERT = "convert"  # the step before the tasks: conversion, loading
STARTING_SECONDS = 120.0  # a worker that was just started imports its libraries before it says anything


class Limits(Protocol):
    """Of a runner section. Times in seconds, none is for ever; ``attempts``: how often a step is begun."""

    @property
    def attempts(self) -> int: ...

    @property
    def task_time_limit(self) -> float | None: ...

    @property
    def heartbeat_timeout(self) -> float | None: ...


@dataclass(kw_only=True)
class Progress:
    """From a worker's start, or its order, to its last event. Times are those of ``time.monotonic``."""

    running: list[str] = field(default_factory=list)  # tasks that were started and have not ended
    share: str = ""  # of the one that runs
    loaded: bool = False
    _step_began: float = field(default_factory=time.monotonic)
    _heard: float = field(default_factory=time.monotonic)
    _was_heard: bool = False

    @property
    def step(self) -> str:
        """The name under which deaths of the worker are counted. Of tasks that are asked together none is to blame."""
        return self.share or "+".join(self.running) or CONVERT

    def heard(self, event: dict[str, Any]) -> None:
        """Take note of an event of the worker."""
        self._heard, self._was_heard = time.monotonic(), True
        kind = event["event"]
        if kind in ("task_started", "share_started"):
            self.running.append(event["task"])
            self.share = event.get("share", "")
        elif kind in ("task_done", "task_failed", "share_done") and event["task"] in self.running:
            self.running.remove(event["task"])
            self.share = ""
        elif kind == "loaded":
            self.loaded = True
        if kind != "alive":
            self._step_began = self._heard

    def waits(self) -> None:
        """It has been put back into a queue, or is suspended there: that time does not count, and it may be started anew."""
        self._heard = self._step_began = time.monotonic()
        self._was_heard = False

    def time_left(self, limits: Limits) -> float | None:
        """Seconds until ``overdue`` may have something to say; none when it never will."""
        ends = [end for end, _ in self._ends(limits)]
        return min(ends) - time.monotonic() if ends else None

    def overdue(self, limits: Limits) -> str | None:
        """Why the worker must be taken for hung."""
        now = time.monotonic()
        return next((reason for end, reason in self._ends(limits) if now >= end), None)

    def _ends(self, limits: Limits) -> list[tuple[float, str]]:
        ends = []
        if (silent := limits.heartbeat_timeout) is not None:
            silent = silent if self._was_heard else max(silent, STARTING_SECONDS)
            ends.append((self._heard + silent, f"gave no sign of life for {silent:g} s (runner.heartbeat_timeout)"))
        if (longest := limits.task_time_limit) is not None:
            # Asked together, tasks have their time together; and libraries are imported before the first event.
            allowed = longest * max(1, len(self.running)) if self._was_heard else max(longest, STARTING_SECONDS)
            ends.append((self._step_began + allowed, f"took more than {longest:g} s (runner.task_time_limit)"))
        return ends
