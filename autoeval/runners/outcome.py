"""How a task ended, wherever it ran."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from autoeval.tasks.openicl import Task

TAIL_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """How one task ended: ``code`` of its last try (negative: the signal), outputs that are not there, and what a
    queue said of it (``why``: TIMEOUT, say)."""

    task: Task
    code: int
    tries: int
    log: Path | None  # None when the output was not redirected
    missing: tuple[Path, ...]
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.missing

    @property
    def reason(self) -> str:
        tries = f" (after {self.tries} tries)" if self.tries > 1 else ""
        if self.why:
            return f"{self.why}{tries}"
        if self.code == 0:
            return f"ended, but {self.missing[0]} is not there{tries}"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}{tries}"
        return f"failed with code {self.code}{tries}"

    def tail(self) -> list[str]:
        """The log's last lines."""
        return self.lines()[-TAIL_LINES:]

    def lines(self) -> list[str]:
        """The log's lines that are not empty; of a progress bar, its last state."""
        if self.log is None or not self.log.exists():
            return []
        text = self.log.read_bytes().decode(errors="replace")
        return [line.rstrip().rpartition("\r")[2] for line in text.split("\n") if line.strip()]


def missing(task: Task) -> tuple[Path, ...]:
    """The outputs of ``task`` that are not there."""
    return tuple(path for path in task.get_output_paths() if not path.exists())
