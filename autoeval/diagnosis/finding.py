"""What a rule found: a level, and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["Low", "Medium", "High"]
LEVELS: tuple[Level, ...] = ("Low", "Medium", "High")


@dataclass(frozen=True)
class Finding:
    """``rule`` names the rule (and its sentence in ``texts``); ``first`` and ``last`` are iterations on the log's axis.

    ``values`` are the numbers and names that the sentence and the evidence show.
    """

    rule: str
    level: Level
    first: float
    last: float
    values: dict[str, float | str] = field(default_factory=dict)


def highest(findings: Iterable[Finding]) -> Level:
    """The level of the worst of ``findings``, Low without any."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="Low")
