"""The ledger: every checkpoint, task run, score, item outcome and outbox entry, in one SQLite file.

The JSON results on disk are the truth, the ledger is their index: ``rebuild`` makes it again. It may be used from
several threads and processes of one host at once (write-ahead log, short transactions); anybody may read it.
Published baselines are not in it: they come from ``baselines.yaml`` each time a view is built.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recorder import ledger_writes as writes
from recorder.ledger_items import as_outcomes, item_set, unpacked
from recorder.ledger_rows import CheckpointRow, ItemRow, JobRow, OutboxRow, Outcomes, ScoreRow, Standing, TaskRow
from recorder.ledger_schema import move_aside, open_database
from recorder.ledger_writes import SINKS
from recorder.results import SHARE_ERROR, CheckpointRef, ResultFileError, TaskResult, mistakes, read_result

__all__ = [
    "SINKS",
    "CheckpointRow",
    "ItemRow",
    "JobRow",
    "Ledger",
    "LedgerError",
    "OutboxRow",
    "Outcomes",
    "ScoreRow",
    "Standing",
    "TaskRow",
]

logger = logging.getLogger(__name__)


class LedgerError(RuntimeError):
    """The ledger cannot be used as asked; the message names the file."""


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

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Several queries of one state of the file."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    # Checkpoints and task runs

    def note_checkpoint(self, ref: CheckpointRef, state: str = "found", error: str | None = None) -> None:
        """Record the save ``ref`` and its state; other saves of the same iteration become superseded."""
        with self._writing() as connection:
            writes.note_checkpoint(connection, ref, state, error)

    def set_state(self, ref: CheckpointRef, state: str, error: str | None = None) -> None:
        """Change the state of a save (noting it when it is new); whether it is superseded stays as it is."""
        with self._writing() as connection:
            writes.set_state(connection, ref, state, error)

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
            checkpoint = writes.checkpoint_id(connection, ref)
            writes.note_task(connection, checkpoint, task, version or "", state, error, log)

    def note_job(self, ref: CheckpointRef, key: str, *, stage: str, runner: str, manifest: Path, size: int) -> None:
        """Record a job that is about to be submitted; see ``JobRow``."""
        with self._writing() as connection:
            checkpoint = writes.checkpoint_id(connection, ref)
            writes.note_job(connection, checkpoint, key, stage, runner, str(manifest), size)

    def change_job(self, key: str, state: str, job: str | None = None) -> None:
        """Record that a job is open, cancelling or ended. Without ``job`` the known id stays."""
        with self._writing() as connection:
            writes.change_job(connection, key, job, state)

    def jobs(self, model: str) -> list[JobRow]:
        """Those of a model's checkpoints that have not ended, in the order in which they were noted."""
        rows = self._rows(
            "SELECT c.model, c.iteration, c.fingerprint, j.stage, j.key, j.runner, j.manifest, j.size, j.job, j.state "
            "FROM job_rows j JOIN checkpoint_rows c ON c.id = j.checkpoint_id "
            "WHERE j.state <> 'ended' AND c.model = ? ORDER BY j.noted_at",
            (model,),
        )
        return [JobRow(*row) for row in rows]

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
        try:
            with self._writing() as connection:
                return writes.store_result(connection, result)
        except sqlite3.IntegrityError as error:
            raise self._refused(result, f"a metric comes twice ({error})") from error

    def _refused(self, result: TaskResult, why: str) -> LedgerError:
        ref = result.checkpoint
        return LedgerError(f"{self.path}: {ref.model} iteration {ref.iteration}, task {result.task}: {why}")

    def scores(
        self,
        include_superseded: bool = False,
        all_versions: bool = False,
        *,
        models: Sequence[str] | None = None,
        since: Mapping[str, int] | None = None,
        named: Mapping[str, int] | None = None,
    ) -> list[ScoreRow]:
        """Scores by model, iteration, task and metric; only of ``models`` if asked, from the iteration ``since`` on
        (and the ``named`` one).

        By default only of current saves, and of each model's task only the version that was recorded last: scores of
        two versions don't belong on one curve.
        """
        conditions = [] if include_superseded else ["c.superseded = 0"]
        conditions += [] if all_versions else [_DRAWN_EVER if include_superseded else _DRAWN]
        conditions += [] if models is None else [f"c.model IN ({_marks(models)})"]
        conditions += ["(c.model <> ? OR c.iteration >= ? OR c.iteration = ?)"] * len(since or {})
        asked = (*(models or ()), *(part for m, at in (since or {}).items() for part in (m, at, (named or {}).get(m))))
        # Joined and ordered as the indexes are: nothing has to be sorted. What is the same for all scores of a result
        # is read once for each result: of a large ledger most time would go into making those texts again.
        joined = "FROM checkpoint_rows c CROSS JOIN result_rows r ON r.checkpoint_id = c.id"
        with self._reading():
            results = self._rows(
                "SELECT r.id, c.model, c.iteration, c.tokens, r.task, r.task_version, r.source, c.superseded, "
                f"r.recorded_at, c.fingerprint {joined} " + _where(conditions),
                asked,
            )
            rows = self._rows(
                "SELECT s.result_id, s.metric, s.value, s.stderr, s.n, s.higher_is_better, s.chance, s.position "
                f"{joined} CROSS JOIN score_rows s ON s.result_id = r.id {_where(conditions)}"
                "ORDER BY c.model, c.iteration, c.fingerprint, r.task, r.task_version, s.metric",
                asked,
            )
        of = {r[0]: (r[1:6], r[6:7], r[7] != 0, r[8], r[9]) for r in results}
        names = {row[1]: row[1] for row in rows}  # one text for each metric
        found = []
        for result, metric, value, stderr, n, high, chance, position in rows:
            begin, source, superseded, recorded, mark = of[result]
            end = (high != 0, *source, superseded, recorded, chance, mark, position)
            found.append(ScoreRow._make((*begin, names[metric], value, stderr, n, *end)))
        return found

    def standing(self, excluded: Sequence[str] = ()) -> Standing:
        """What decides which scores stand on a leaderboard without ``excluded`` models, not reading all of them."""
        drawn = f"c.superseded = 0 AND c.model NOT IN ({_marks(excluded)}) AND {_DRAWN}"
        with self._reading():
            counted = self._rows(
                "SELECT c.model, c.iteration, COUNT(*) FROM checkpoint_rows c JOIN result_rows r "
                f"ON r.checkpoint_id = c.id WHERE {drawn} GROUP BY c.model, c.iteration",
                excluded,
            )
            unfit = self._rows(
                "SELECT DISTINCT r.task, s.metric FROM score_rows s JOIN result_rows r ON r.id = s.result_id "
                "JOIN checkpoint_rows c ON c.id = r.checkpoint_id WHERE (s.higher_is_better = 0 "
                f"OR s.value NOT BETWEEN {-SHARE_ERROR} AND {1 + SHARE_ERROR}) AND {drawn}",
                excluded,
            )
            versions = self._rows(
                "SELECT r.task, r.task_version, MAX(r.recorded_at) FROM result_rows r JOIN checkpoint_rows c "
                f"ON c.id = r.checkpoint_id WHERE {drawn} GROUP BY r.task, r.task_version "
                "ORDER BY 3, 2",
                excluded,
            )
        return Standing(
            {(model, iteration): count for model, iteration, count in counted},
            frozenset(f"{task}.{metric}" for task, metric in unfit),
            {task: version for task, version, _ in versions},
        )

    def items(self, model: str, iteration: int) -> list[ItemRow]:
        """Item outcomes behind ``scores()`` of one current save, by task, metric and key."""
        found = []
        for task, metric, content, form, packed in self._blocks(model, iteration):
            keys, values = item_set(content)[0], unpacked(form, packed)
            found += [ItemRow(iteration, task, metric, key, value) for key, value in zip(keys, values, strict=True)]
        return found

    def outcomes(self, model: str, iteration: int) -> dict[str, Outcomes]:
        """The same by ``<task>.<metric>``, each item once."""
        return {
            f"{task}.{metric}": as_outcomes(*item_set(content), unpacked(form, packed))
            for task, metric, content, form, packed in self._blocks(model, iteration)
        }

    def _blocks(self, model: str, iteration: int) -> list[Any]:
        return self._rows(
            "SELECT r.task, b.metric, k.content, b.form, b.outcomes FROM checkpoint_rows c "
            "JOIN result_rows r ON r.checkpoint_id = c.id JOIN item_blocks b ON b.result_id = r.id "
            "JOIN item_sets k ON k.id = b.set_id WHERE c.model = ? AND c.iteration = ? AND c.superseded = 0 "
            f"AND {_DRAWN} ORDER BY r.task, b.metric",
            (model, iteration),
        )

    def query(self, select: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Rows of a SELECT on the published views (``scores``, ``checkpoints``, ``costs``, ``checkpoint_costs``, ``jobs``)."""
        return self._rows(select, parameters)

    # Outbox and settings

    def outbox_pending(self, sink: str) -> list[OutboxRow]:
        """What ``sink`` has not been given yet, by model and iteration. Superseded saves are no longer sent.

        A sink that asks for the first time is due everything.
        """
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO outbox (sink, result_id, enqueued_at) SELECT ?1, id, ?2 FROM result_rows "
                "WHERE id > (SELECT COALESCE(MAX(result_id), 0) FROM outbox WHERE sink = ?1) ON CONFLICT DO NOTHING",
                (sink, time.time()),
            )
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


_DRAWN = (
    "EXISTS (SELECT 1 FROM newest_versions v WHERE v.model = c.model AND v.task = r.task "
    "AND v.task_version = r.task_version)"
)
_DRAWN_EVER = (  # also of saves that were superseded
    "(c.model, r.task, r.task_version) IN (SELECT c2.model, r2.task, r2.task_version FROM result_rows r2 "
    "JOIN checkpoint_rows c2 ON c2.id = r2.checkpoint_id WHERE r2.id IN (SELECT MAX(r3.id) FROM result_rows r3 "
    "JOIN checkpoint_rows c3 ON c3.id = r3.checkpoint_id GROUP BY c3.model, r3.task))"
)


def _where(conditions: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(conditions)} " if conditions else ""


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))
