"""What a run's worker is at: one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from autoeval.runners.progress import Progress
from autoeval.watched_run import Entry, WatchedRun


@dataclass
class AtWork(Progress):
    """One checkpoint from its order to its last event."""

    run: WatchedRun
    entry: Entry
    has_looked_ahead: bool = False  # the checkpoint after it is being converted
