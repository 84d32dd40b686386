"""What a service said to a message, and what that means for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GONE = frozenset({401, 403, 404, 410})  # HTTP: the address or the right to use it is not there
LONGEST_WAIT = 60.0  # seconds, whatever a service asks for: the rest is for the next attempt


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; header names in lower case."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def seconds(self, *names: str) -> float | None:
        """The wait that one of these headers asks for."""
        for name in names:
            try:
                return min(LONGEST_WAIT, max(0.0, float(self.headers[name])))
            except (KeyError, ValueError):
                continue
        return None


@dataclass(frozen=True)
class Answer:
    """``later``: worth another attempt, after ``wait`` seconds where the service says so. ``refused``: this message, as it
    is, never. ``closed``: no message at all until a person mends the address, the secret or the bot.

    ``why`` never contains the webhook.
    """

    verdict: Literal["taken", "later", "refused", "closed"]
    why: str = ""
    wait: float | None = None
