"""What a message says, before it takes the shape of Lark, Slack or a webhook of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["started", "verdict", "failure", "finished", "progress", "test"]
Tone = Literal["good", "bad", "unsure", "plain"]

LONGEST_TEXT = 1200  # characters of one paragraph or line: Lark takes 20 KB a message, Slack 3,000 characters a block
MOST_LINES = 12


@dataclass(frozen=True)
class Message:
    """``text`` is one paragraph; ``facts`` are (label, value) pairs; ``lines`` are details, one each.

    All of it is plain text: each format escapes what means something to it.
    """

    kind: Kind
    tone: Tone
    title: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()
    project: str = ""
    model: str = ""
    iteration: int | None = None

    def plain(self) -> str:
        """All of it but the title, as lines."""
        facts = [f"{label}: {value}" for label, value in self.facts]
        return "\n".join(part for part in (self.text, *facts, *self.lines) if part)

    def shortened(self) -> Message:
        """The same within what every service takes."""
        lines = [_cut(line) for line in self.lines[:MOST_LINES]]
        if len(self.lines) > MOST_LINES:
            lines.append(f"… and {len(self.lines) - MOST_LINES} more")
        facts = tuple((_cut(label, 60), _cut(value, 300)) for label, value in self.facts[:10])
        return Message(
            self.kind,
            self.tone,
            _cut(self.title, 140),
            _cut(self.text),
            facts,
            tuple(lines),
            self.project,
            self.model,
            self.iteration,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Message:
        content = json.loads(text)
        content["facts"] = tuple((str(label), str(value)) for label, value in content["facts"])
        content["lines"] = tuple(content["lines"])
        return Message(**content)


def _cut(text: str, limit: int = LONGEST_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
