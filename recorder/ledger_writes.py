"""The ledger's writes, each within the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
import time

from recorder.ledger_items import store_items
from recorder.results import CheckpointRef, TaskResult

SINKS = ("wandb",)


def storable(text: str | None) -> str | None:
    """``text`` with a question mark for what is no character: bytes of a file name that are not UTF-8."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def checkpoint_id(connection: sqlite3.Connection, ref: CheckpointRef) -> int:
    """The row of ``ref``, made in the state ``evaluated`` when it was not known."""
    known = _find(connection, ref)
    return note_checkpoint(connection, ref, "evaluated", None) if known is None else known


def note_checkpoint(connection: sqlite3.Connection, ref: CheckpointRef, state: str, error: str | None) -> int:
    now = time.time()
    connection.execute(
        "INSERT INTO checkpoint_rows (model, iteration, fingerprint, path, tokens, state, error, found_at, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, iteration, fingerprint) DO UPDATE SET "
        "path = excluded.path, tokens = COALESCE(excluded.tokens, tokens), state = excluded.state, "
        "error = excluded.error, updated_at = excluded.updated_at",
        (ref.model, ref.iteration, ref.fingerprint, storable(ref.path), ref.tokens, state, storable(error), now, now),
    )
    changed = connection.execute(
        "UPDATE checkpoint_rows SET superseded = (fingerprint <> ?1) WHERE model = ?2 AND iteration = ?3 "
        "AND superseded <> (fingerprint <> ?1)",
        (ref.fingerprint, ref.model, ref.iteration),
    ).rowcount
    if changed:
        _choose_versions(connection, ref.model)
    known = _find(connection, ref)
    assert known is not None
    return known


def set_state(connection: sqlite3.Connection, ref: CheckpointRef, state: str, error: str | None) -> None:
    changed = connection.execute(
        "UPDATE checkpoint_rows SET state = ?, error = ?, updated_at = ? "
        "WHERE model = ? AND iteration = ? AND fingerprint = ?",
        (state, storable(error), time.time(), ref.model, ref.iteration, ref.fingerprint),
    ).rowcount
    if not changed:
        note_checkpoint(connection, ref, state, error)


def note_task(
    connection: sqlite3.Connection,
    checkpoint: int,
    task: str,
    version: str,
    state: str,
    error: str | None,
    log: str | None,
) -> None:
    """``checkpoint``: the row's id."""
    connection.execute(
        "INSERT INTO task_rows (checkpoint_id, task, version, state, attempts, error, log, updated_at) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (checkpoint_id, task, version) DO UPDATE SET "
        "state = ?4, attempts = attempts + ?5, error = ?6, log = COALESCE(?7, log), updated_at = ?8",
        (checkpoint, task, version, state, int(state == "running"), storable(error), storable(log), time.time()),
    )


def store_result(connection: sqlite3.Connection, result: TaskResult) -> bool:
    """False, and nothing done, when the result of this checkpoint, task and version is there already.

    Raises ``sqlite3.IntegrityError`` when a metric comes twice.
    """
    checkpoint = checkpoint_id(connection, result.checkpoint)
    now = time.time()
    inserted = connection.execute(
        "INSERT INTO result_rows (checkpoint_id, task, task_version, source, cost, finished_at, recorded_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
        (
            checkpoint,
            result.task,
            result.task_version,
            result.source,
            json.dumps(result.cost),
            result.finished_at,
            now,
        ),
    ).fetchone()
    if inserted is None:
        return False
    result_id = inserted[0]
    connection.executemany(
        "INSERT INTO score_rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (result_id, s.metric, s.value, s.stderr, s.n, int(s.higher_is_better), s.chance, position)
            for position, s in enumerate(result.scores)
        ],
    )
    store_items(connection, result_id, result.items)
    connection.executemany(
        "INSERT INTO outbox (sink, result_id, enqueued_at) VALUES (?, ?, ?)",
        [(sink, result_id, now) for sink in SINKS],
    )
    connection.execute(
        "INSERT INTO newest_versions SELECT model, ?2, ?3 FROM checkpoint_rows WHERE id = ?1 AND superseded = 0 "
        "ON CONFLICT (model, task) DO UPDATE SET task_version = excluded.task_version",
        (checkpoint, result.task, result.task_version),
    )
    note_task(connection, checkpoint, result.task, result.task_version, "done", None, None)
    return True


def note_job(
    connection: sqlite3.Connection, checkpoint: int, key: str, stage: str, runner: str, manifest: str, size: int
) -> None:
    """``checkpoint``: the row's id. Noted before it is submitted."""
    connection.execute(
        "INSERT INTO job_rows (key, checkpoint_id, stage, runner, manifest, size, state, noted_at) "
        "VALUES (?, ?, ?, ?, ?, ?, 'open', ?)",
        (key, checkpoint, stage, runner, storable(manifest), size, time.time()),
    )


def change_job(connection: sqlite3.Connection, key: str, job: str | None, state: str) -> None:
    """Without ``job`` the known one stays."""
    ended = time.time() if state == "ended" else None
    connection.execute(
        "UPDATE job_rows SET job = COALESCE(?, job), state = ?, ended_at = ? WHERE key = ?", (job, state, ended, key)
    )


def _find(connection: sqlite3.Connection, ref: CheckpointRef) -> int | None:
    row = connection.execute(
        "SELECT id FROM checkpoint_rows WHERE model = ? AND iteration = ? AND fingerprint = ?",
        (ref.model, ref.iteration, ref.fingerprint),
    ).fetchone()
    return None if row is None else int(row[0])


def _choose_versions(connection: sqlite3.Connection, model: str) -> None:
    """Anew, after a save of ``model`` was superseded: its results no longer say which version is drawn."""
    connection.execute("DELETE FROM newest_versions WHERE model = ?", (model,))
    connection.execute(
        "INSERT INTO newest_versions SELECT c.model, r.task, r.task_version FROM result_rows r "
        "JOIN checkpoint_rows c ON c.id = r.checkpoint_id WHERE r.id IN (SELECT MAX(r2.id) FROM result_rows r2 "
        "JOIN checkpoint_rows c2 ON c2.id = r2.checkpoint_id WHERE c2.model = ? AND c2.superseded = 0 GROUP BY r2.task)",
        (model,),
    )
