"""Another run's ledger: every checkpoint of a model in it, as a course to compare with."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from pathlib import Path

from recorder.sources.measurement import Measured, Measurement, SourceError

_COLUMNS = "model, iteration, tokens, task, task_version, metric, value, stderr, n, higher_is_better, recorded_at"


def read_other_ledger(path: Path, *, model: str | None = None) -> list[Measurement]:
    """By iteration, of each task the version recorded last. Only its public view is read, nothing is changed.

    Raises ``SourceError`` when it cannot be read, or several models are in it and none was named.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; expected another run's ledger.sqlite")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM scores WHERE superseded = 0 ORDER BY recorded_at"
            ).fetchall()
            known = connection.execute(_CHANCE).fetchall() if _has_chance(connection) else []
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise SourceError(f"{path}: cannot be read as a ledger: {error}") from error
    models = sorted({row[0] for row in rows})
    if model is None and len(models) != 1:
        raise SourceError(f"{path}: expected 'model:', one of {', '.join(models) or 'none'}")
    chosen = models[0] if model is None else model
    mine = [row for row in rows if row[0] == chosen]
    if not mine:
        raise SourceError(f"{path}: no scores of the model '{chosen}'; it has {', '.join(models) or 'none'}")
    newest = {row[3]: row[4] for row in mine}
    tasks: dict[int, dict[str, dict[str, Measured]]] = defaultdict(lambda: defaultdict(dict))
    tokens = {}
    for _, iteration, seen, task, version, metric, value, stderr, n, high, _ in mine:
        if version == newest[task]:
            tasks[iteration][task][metric] = Measured(value, stderr, n, bool(high))
            tokens[iteration] = seen
    chance = {task: value for task, value in known if task in newest}
    return [
        Measurement(
            path, iteration, {task: dict(metrics) for task, metrics in of.items()}, tokens[iteration], chance=chance
        )
        for iteration, of in sorted(tasks.items())
    ]


_CHANCE = (
    "SELECT DISTINCT r.task, s.chance FROM score_rows s JOIN result_rows r ON r.id = s.result_id "
    "WHERE s.chance IS NOT NULL ORDER BY r.id"
)


def _has_chance(connection: sqlite3.Connection) -> bool:
    return any(row[1] == "chance" for row in connection.execute("PRAGMA table_info(score_rows)"))
