"""A project whose tasks are large enough to be evaluated in shares, and what jobs have told of these."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

SHARES = 4  # of each of the two tasks, on two slots


def make_long(project: Path) -> None:
    """Items that seem to be long: what they cost is guessed by all that is in them, and no prompt has the note."""
    items = [
        {"question": f"{a} + {b} =", "A": str(a + b), "B": str(a - b), "answer": "A", "note": "x" * 8000}
        for a in range(10, 18)
        for b in range(1, 9)
    ]
    (project / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def told_of_shares(project: Path, kind: str, iteration: int = 300) -> Counter[str]:
    """``share_started`` or ``share_done`` in the event files of all jobs of a checkpoint, by share."""
    files = project.glob(f"out/*/iter_{iteration:07d}/jobs/*/*.events.jsonl")
    lines = [line for file in files for line in file.read_text().splitlines() if line.endswith("}")]
    events = [json.loads(line) for line in lines]
    return Counter(event["share"] for event in events if event["event"] == kind)


def all_shares() -> list[str]:
    return [f"{task} (share {number} of {SHARES})" for task in ("first", "second") for number in range(1, SHARES + 1)]
