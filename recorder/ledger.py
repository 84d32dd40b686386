"""The ledger: every checkpoint, task run, score, item outcome and outbox entry, in one SQLite file.

The JSON results on disk are the truth, the ledger is their index: ``rebuild`` makes it again. It may be used from
several threads and processes of one host at once (write-ahead log, short transactions); anybody may read it.
Published baselines are not in it: they come from ``baselines.yaml`` each time a view is built.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recorder.ledger_schema import move_aside, newest_versions, open_database
from recorder.results import CheckpointRef, ResultFileError, TaskResult, mistakes, read_result

logger = logging.getLogger(__name__)

SINKS = ("wandb",)


class LedgerError(RuntimeError):
    """The ledger cannot be used as asked; the message names the file."""


class CheckpointRow(NamedTuple):
    """``superseded``: the iteration was saved again after this save. Times are Unix seconds."""

    model: str
    iteration: int
    fingerprint: str
    path: str
    tokens: float | None
    state: str
    error: str | None
    superseded: bool
    found_at: float
    updated_at: float


class TaskRow(NamedTuple):
    """The state of one task on one checkpoint. ``attempts`` counts how often it was started."""

    model: str
    iteration: int
    fingerprint: str
    task: str
    version: str
    state: str
    attempts: int
    error: str | None
    log: str | None
    updated_at: float
    superseded: bool


class ScoreRow(NamedTuple):
    model: str
    iteration: int
    tokens: float | None  # billions
    task: str
    task_version: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    source: str
    superseded: bool
    recorded_at: float
    chance: float | None
    fingerprint: str
    position: int  # among the metrics of its task; the first is the one its author looks at first


class ItemRow(NamedTuple):
    iteration: int
    task: str
    metric: str
    key: str
    value: float


class OutboxRow(NamedTuple):
    id: int
    sink: str
    model: str
    iteration: int
    fingerprint: str
    task: str
    task_version: str


class Ledger:
    """Opens ``path``, making or migrating it. A damaged file is moved aside and rebuilt from the results beside it.

    Without ``repair`` a damaged file is an error: who only shows what is there must not take the file from the daemon.
    Raises ``LedgerError`` naming the file.
    """

    def __init__(self, path: Path | str, *, repair: bool = True):
        self.path = Path(path)
        self._lock = threading.RLock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = open_database(self.path)
        except sqlite3.OperationalError as error:  # locked, read-only, no such place: the content is not to blame
            raise LedgerError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            if not repair:
                raise LedgerError(
                    f"{self.path} is damaged ({error}): start evaluator.py again, which rebuilds it from the results"
                ) from error
            aside = move_aside(self.path)
            logger.warning("%s is damaged (%s): moved to %s, rebuilding from the results", self.path, error, aside)
            self._connection = open_database(self.path)
            self.rebuild(self.path.parent)
        except RuntimeError as error:
            raise LedgerError(f"{self.path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises ``LedgerError`` when the file is locked for too long, full or read-only."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:  # a full disk has rolled back already
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise LedgerError(f"{self.path}: {error}") from error

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    # Checkpoints and task runs

    def note_checkpoint(self, ref: CheckpointRef, state: str = "found", error: str | None = None) -> None:
        """Record the save ``ref`` and its state; other saves of the same iteration become superseded."""
        with self._writing() as connection:
            _note_checkpoint(connection, ref, state, error)

    def set_state(self, ref: CheckpointRef, state: str, error: str | None = None) -> None:
        """Change the state of a save (noting it when it is new); whether it is superseded stays as it is."""
        with self._writing() as connection:
            changed = connection.execute(
                "UPDATE checkpoint_rows SET state = ?, error = ?, updated_at = ? "
                "WHERE model = ? AND iteration = ? AND fingerprint = ?",
                (state, _storable(error), time.time(), ref.model, ref.iteration, ref.fingerprint),
            ).rowcount
            if not changed:
                _note_checkpoint(connection, ref, state, error)

    def note_task(
        self,
        ref: CheckpointRef,
        task: str,
        state: str,
        *,
        version: str | None = None,
        error: str | None = None,
        log: str | None = None,
    ) -> None:
        """Record that ``task`` is queued, running, done or failed on ``ref``. Without ``log`` the known one stays."""
        with self._writing() as connection:
            _note_task(connection, _checkpoint_id(connection, ref), task, version or "", state, error, log)

    def checkpoints(self) -> list[CheckpointRow]:
        """All saves, by model and iteration; of one iteration the current save comes last."""
        rows = self._rows(
            "SELECT model, iteration, fingerprint, path, tokens, state, error, superseded, found_at, updated_at "
            "FROM checkpoint_rows ORDER BY model, iteration, superseded DESC, id"
        )
        return [CheckpointRow._make((*row[:7], bool(row[7]), *row[8:])) for row in rows]

    def tasks(self) -> list[TaskRow]:
        """All task runs, by model, iteration and task; the one changed last comes last among versions of a task."""
        rows = self._rows(
            "SELECT c.model, c.iteration, c.fingerprint, t.task, t.version, t.state, t.attempts, t.error, t.log, "
            "t.updated_at, c.superseded FROM task_rows t JOIN checkpoint_rows c ON c.id = t.checkpoint_id "
            "ORDER BY c.model, c.iteration, c.superseded DESC, t.task, t.updated_at, t.id"
        )
        return [TaskRow._make((*row[:10], bool(row[10]))) for row in rows]

    # Scores and items

    def ingest(self, result: TaskResult) -> bool:
        """Take in one result and put it into the outbox. False, and nothing done, when it is already there.

        Raises ``LedgerError`` when a number in it is not finite, or a metric comes twice.
        """
        wrong = next(mistakes(result), None)
        if wrong is not None:
            raise self._refused(result, wrong)
        with self._writing() as connection:
            return self._ingest(connection, result)

    def _refused(self, result: TaskResult, why: str) -> LedgerError:
        ref = result.checkpoint
        return LedgerError(f"{self.path}: {ref.model} iteration {ref.iteration}, task {result.task}: {why}")

    def _ingest(self, connection: sqlite3.Connection, result: TaskResult) -> bool:
        checkpoint_id = _checkpoint_id(connection, result.checkpoint)
        now = time.time()
        inserted = connection.execute(
            "INSERT INTO result_rows (checkpoint_id, task, task_version, source, cost, finished_at, recorded_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
            (
                checkpoint_id,
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
        try:
            connection.executemany(
                "INSERT INTO score_rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (result_id, s.metric, s.value, s.stderr, s.n, int(s.higher_is_better), s.chance, position)
                    for position, s in enumerate(result.scores)
                ],
            )
            connection.executemany(
                "INSERT INTO item_rows VALUES (?, ?, ?, ?)",
                [(result_id, item.metric, item.key, item.value) for item in result.items],
            )
        except sqlite3.IntegrityError as error:
            raise self._refused(result, f"a metric comes twice ({error})") from error
        connection.executemany(
            "INSERT INTO outbox (sink, result_id, enqueued_at) VALUES (?, ?, ?)",
            [(sink, result_id, now) for sink in SINKS],
        )
        _note_task(connection, checkpoint_id, result.task, result.task_version, "done", None, None)
        return True

    def scores(self, include_superseded: bool = False, all_versions: bool = False) -> list[ScoreRow]:
        """Scores by model, iteration, task and metric.

        By default only of current saves, and of each model's task only the version that was recorded last: scores of
        two versions don't belong on one curve.
        """
        conditions = [] if include_superseded else ["c.superseded = 0"]
        conditions += (
            [] if all_versions else [f"(c.model, r.task, r.task_version) IN ({newest_versions(include_superseded)})"]
        )
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        rows = self._rows(
            "SELECT c.model, c.iteration, c.tokens, r.task, r.task_version, s.metric, s.value, s.stderr, s.n, "
            "s.higher_is_better, r.source, c.superseded, r.recorded_at, s.chance, c.fingerprint, s.position "
            "FROM checkpoint_rows c JOIN result_rows r ON r.checkpoint_id = c.id "
            f"JOIN score_rows s ON s.result_id = r.id {where}"
            "ORDER BY c.model, c.iteration, r.task, s.metric"
        )
        return [ScoreRow._make((*row[:9], row[9] != 0, row[10], row[11] != 0, *row[12:])) for row in rows]

    def items(self, model: str, iteration: int) -> list[ItemRow]:
        """Item outcomes behind ``scores()`` of one current save, by task, metric and key."""
        rows = self._rows(
            "SELECT c.iteration, r.task, i.metric, i.key, i.value FROM item_rows i JOIN result_rows r "
            "ON r.id = i.result_id JOIN checkpoint_rows c ON c.id = r.checkpoint_id "
            "WHERE c.model = ? AND c.iteration = ? AND c.superseded = 0 "
            f"AND (c.model, r.task, r.task_version) IN ({newest_versions(False)}) ORDER BY r.task, i.metric, i.key",
            (model, iteration),
        )
        return [ItemRow(*row) for row in rows]

    # Outbox and settings

    def outbox_pending(self, sink: str) -> list[OutboxRow]:
        """What ``sink`` has not been given yet, by model and iteration. Superseded saves are no longer sent."""
        rows = self._rows(
            "SELECT o.id, o.sink, c.model, c.iteration, c.fingerprint, r.task, r.task_version FROM outbox o "
            "JOIN result_rows r ON r.id = o.result_id JOIN checkpoint_rows c ON c.id = r.checkpoint_id "
            "WHERE o.sink = ? AND o.state = 'pending' AND c.superseded = 0 ORDER BY c.model, c.iteration, r.task",
            (sink,),
        )
        return [OutboxRow(*row) for row in rows]

    def outbox_done(self, sink: str, ids: Iterable[int]) -> None:
        """Mark entries as delivered."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE outbox SET state = 'done', done_at = ? WHERE sink = ? AND id = ?",
                [(time.time(), sink, entry) for entry in ids],
            )

    def remember(self, key: str, value: str) -> None:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def recall(self, key: str) -> str | None:
        rows = self._rows("SELECT value FROM settings WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def rebuild(self, work_dir: Path | str) -> int:
        """Take in every ``results/**/*.json`` below ``work_dir``, oldest first; how many were new.

        A file that cannot be read is reported in the log and left out. Checkpoints that were not known get the state
        ``evaluated``.
        """
        results: list[TaskResult] = []
        for path in sorted(Path(work_dir).rglob("*.json")):
            if "results" not in path.relative_to(work_dir).parts[:-1]:
                continue
            try:
                results.append(read_result(path))
            except ResultFileError as error:
                logger.warning("left out: %s", error)
        taken_in = 0
        for result in sorted(results, key=lambda result: result.finished_at):
            try:
                taken_in += self.ingest(result)
            except LedgerError as error:
                logger.warning("left out: %s", error)
        return taken_in


def _storable(text: str | None) -> str | None:
    """``text`` with a question mark for what is no character: bytes of a file name that are not UTF-8."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _find(connection: sqlite3.Connection, ref: CheckpointRef) -> int | None:
    row = connection.execute(
        "SELECT id FROM checkpoint_rows WHERE model = ? AND iteration = ? AND fingerprint = ?",
        (ref.model, ref.iteration, ref.fingerprint),
    ).fetchone()
    return None if row is None else int(row[0])


def _checkpoint_id(connection: sqlite3.Connection, ref: CheckpointRef) -> int:
    known = _find(connection, ref)
    return _note_checkpoint(connection, ref, "evaluated", None) if known is None else known


def _note_checkpoint(connection: sqlite3.Connection, ref: CheckpointRef, state: str, error: str | None) -> int:
    now = time.time()
    connection.execute(
        "INSERT INTO checkpoint_rows (model, iteration, fingerprint, path, tokens, state, error, found_at, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, iteration, fingerprint) DO UPDATE SET "
        "path = excluded.path, tokens = COALESCE(excluded.tokens, tokens), state = excluded.state, "
        "error = excluded.error, updated_at = excluded.updated_at",
        (ref.model, ref.iteration, ref.fingerprint, _storable(ref.path), ref.tokens, state, _storable(error), now, now),
    )
    connection.execute(
        "UPDATE checkpoint_rows SET superseded = (fingerprint <> ?) WHERE model = ? AND iteration = ?",
        (ref.fingerprint, ref.model, ref.iteration),
    )
    known = _find(connection, ref)
    assert known is not None
    return known


def _note_task(
    connection: sqlite3.Connection,
    checkpoint_id: int,
    task: str,
    version: str,
    state: str,
    error: str | None,
    log: str | None,
) -> None:
    connection.execute(
        "INSERT INTO task_rows (checkpoint_id, task, version, state, attempts, error, log, updated_at) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (checkpoint_id, task, version) DO UPDATE SET "
        "state = ?4, attempts = attempts + ?5, error = ?6, log = COALESCE(?7, log), updated_at = ?8",
        (checkpoint_id, task, version, state, int(state == "running"), _storable(error), _storable(log), time.time()),
    )
