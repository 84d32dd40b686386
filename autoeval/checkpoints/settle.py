"""How long files must rest before a conclusion is drawn that nothing in them proves."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SettleTimes:
    """Seconds since the last change. None of them delays a save that ended as Megatron ends one: tracker last.

    ``marks``: DCP marks are whole, the tracker is missing, torn or older than the files (a copy, a crash before it).
    ``behind``: the same, but the tracker names an earlier iteration, so the run may be about to write it.
    ``legacy``: rank files are whole, and the tracker proves only half of what it should.
    ``quiet``: a Hugging Face directory and Megatron-Bridge's ``run_config.yaml`` end with no mark at all.
    ``disorder``: file times contradict the order of writing, by clock skew or because a copy lost them.
    ``abandoned``: an unfinished save after which a later one was completed.
    ``upload``: all objects of a checkpoint in a store are there, and no tracker that came after them; or twice the longest
    pause between two of them, if that is more.

    Raises ``ValueError`` for a negative number.
    """

    marks: float = 10.0
    behind: float = 60.0
    legacy: float = 60.0
    quiet: float = 0.5
    disorder: float = 60.0
    abandoned: float = 60.0
    upload: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"settle time {field.name} is {value!r}, expected seconds, 0 or more")
