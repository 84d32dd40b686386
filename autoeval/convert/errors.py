"""What this room raises."""

from __future__ import annotations

from pathlib import Path


class ConversionError(ValueError):
    """The checkpoint cannot be converted, or its conversion did not pass its checks; the message says where and why."""


class SourceChanged(ConversionError):
    """The checkpoint was saved again, or deleted, while it was read: look again, nothing was wrong with it."""


class BadWeights(ConversionError):
    """A weight is NaN or infinite: the run has diverged, or the file is damaged."""


class OutputError(ConversionError):
    """The place of the output: disk full, not writable, or another conversion is at work there. Worth a second try."""


class Quarantined(ConversionError):
    """What was converted did not pass its checks; it stands at ``directory`` with the reason, and has no receipt."""

    def __init__(self, message: str, directory: Path):
        super().__init__(message)
        self.directory = directory
