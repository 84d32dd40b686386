"""What evaluating has cost, task by task and checkpoint by checkpoint. Anybody can ask the ledger's views the same:

    SELECT * FROM costs;              one row a result
    SELECT * FROM checkpoint_costs;   one row a save: device-seconds, tokens and seconds of its results together

Tokens: ``prompt`` as if every request were computed by itself, ``unique`` distinct ones, ``computed`` what was computed,
``generated``. ``seconds`` are the model's, ``wall_seconds`` all, ``device_seconds`` wall seconds times devices;
``tokens_per_second`` is computed tokens over the model's seconds; memory in bytes. ``None``: not known (a result of an
earlier release, or of a program that does not tell).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from recorder.ledger import Ledger


class TaskCost(NamedTuple):
    model: str
    iteration: int
    fingerprint: str
    task: str
    task_version: str
    source: str
    superseded: bool
    prompt_tokens: float | None
    unique_tokens: float | None
    computed_tokens: float | None
    generated_tokens: float | None
    seconds: float | None
    wall_seconds: float | None
    device_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    finished_at: float


class CheckpointCost(NamedTuple):
    """Sums over the results of one save, but for ``tokens_per_second`` (of the sums) and ``peak_memory_bytes`` (the
    largest). ``tasks`` counts the results."""

    model: str
    iteration: int
    fingerprint: str
    superseded: bool
    tasks: int
    prompt_tokens: float | None
    unique_tokens: float | None
    computed_tokens: float | None
    generated_tokens: float | None
    seconds: float | None
    wall_seconds: float | None
    device_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None

    def figures(self) -> dict[str, float]:
        """Those that are known, by name: what W&B shows as ``cost/<name>``."""
        shown: dict[str, Any] = self._asdict()
        return {name: float(shown[name]) for name in FIGURES if shown[name] is not None}


FIGURES = (
    "device_seconds", "wall_seconds", "seconds", "prompt_tokens", "unique_tokens", "computed_tokens",
    "generated_tokens", "tokens_per_second", "peak_memory_bytes",
)  # fmt: skip


def task_costs(ledger: Ledger) -> list[TaskCost]:
    """Of every result, by model, iteration and task; also of superseded saves and older versions: they were paid too."""
    rows = ledger.query(f"SELECT {', '.join(TaskCost._fields)} FROM costs ORDER BY model, iteration, task, finished_at")
    return [TaskCost(*row)._replace(superseded=bool(row[6])) for row in rows]


def checkpoint_costs(ledger: Ledger) -> list[CheckpointCost]:
    """Of every save that has results, by model and iteration."""
    columns = ", ".join(CheckpointCost._fields)
    rows = ledger.query(f"SELECT {columns} FROM checkpoint_costs ORDER BY model, iteration, superseded DESC")
    return [CheckpointCost(*row)._replace(superseded=bool(row[3])) for row in rows]
