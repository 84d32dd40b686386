"""The ledger's tables and views, as the list of steps that made them.

``PRAGMA user_version`` says how many of ``MIGRATIONS`` a file has been through. A published step is never edited; a
change is a new step at the end.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from recorder.ledger_items import into_blocks

BUSY_SECONDS = 30.0
QUICK_CHECK_BYTES = 64 * 2**20  # above this a check at every opening would be felt

_FIRST = """
CREATE TABLE checkpoint_rows (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    path TEXT NOT NULL,
    tokens REAL,
    state TEXT NOT NULL CHECK (state IN ('found', 'pinned', 'converted', 'evaluating', 'evaluated', 'recorded',
                                         'failed', 'missed')),
    error TEXT,
    superseded INTEGER NOT NULL DEFAULT 0,
    found_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (model, iteration, fingerprint)
);
CREATE TABLE task_rows (
    id INTEGER PRIMARY KEY,
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoint_rows (id),
    task TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    log TEXT,
    updated_at REAL NOT NULL,
    UNIQUE (checkpoint_id, task, version)
);
CREATE TABLE result_rows (
    id INTEGER PRIMARY KEY,
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoint_rows (id),
    task TEXT NOT NULL,
    task_version TEXT NOT NULL,
    source TEXT NOT NULL,
    cost TEXT NOT NULL,
    finished_at REAL NOT NULL,
    recorded_at REAL NOT NULL,
    UNIQUE (checkpoint_id, task, task_version)
);
CREATE INDEX result_by_task ON result_rows (task, id, task_version);
CREATE TABLE score_rows (
    result_id INTEGER NOT NULL REFERENCES result_rows (id),
    metric TEXT NOT NULL,
    value REAL NOT NULL,
    stderr REAL,
    n INTEGER NOT NULL,
    higher_is_better INTEGER NOT NULL,
    chance REAL,
    position INTEGER NOT NULL,
    PRIMARY KEY (result_id, metric)
) WITHOUT ROWID;
CREATE TABLE item_rows (
    result_id INTEGER NOT NULL REFERENCES result_rows (id),
    metric TEXT NOT NULL,
    key TEXT NOT NULL,
    value REAL NOT NULL
);
CREATE INDEX item_by_result ON item_rows (result_id, metric, key);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    sink TEXT NOT NULL,
    result_id INTEGER NOT NULL REFERENCES result_rows (id),
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done')),
    enqueued_at REAL NOT NULL,
    done_at REAL,
    UNIQUE (sink, result_id)
);
CREATE INDEX outbox_pending ON outbox (sink) WHERE state = 'pending';
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE VIEW scores AS
SELECT c.model, c.iteration, c.tokens, r.task, r.task_version, s.metric, s.value, s.stderr, s.n, s.higher_is_better,
       r.source, c.superseded, r.recorded_at
FROM score_rows s JOIN result_rows r ON r.id = s.result_id JOIN checkpoint_rows c ON c.id = r.checkpoint_id;

CREATE VIEW checkpoints AS SELECT model, iteration, path, fingerprint, state, error FROM checkpoint_rows;
"""

_MESSAGES = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    content TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'sending', 'sent', 'refused', 'dropped')),
    queued_at REAL NOT NULL,
    tried_at REAL,
    note TEXT,
    UNIQUE (channel, key)
);
"""

_ITEM_BLOCKS = """
CREATE TABLE item_sets (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    content BLOB NOT NULL
);
CREATE TABLE item_blocks (
    id INTEGER PRIMARY KEY,
    result_id INTEGER NOT NULL REFERENCES result_rows (id),
    metric TEXT NOT NULL,
    set_id INTEGER NOT NULL REFERENCES item_sets (id),
    form TEXT NOT NULL CHECK (form IN ('bits', 'doubles')),
    outcomes BLOB NOT NULL,
    UNIQUE (result_id, metric)
);
"""

# The version of each model's task that is drawn: the one recorded last on a save that still counts.
_NEWEST_VERSIONS = """
CREATE TABLE newest_versions (
    model TEXT NOT NULL,
    task TEXT NOT NULL,
    task_version TEXT NOT NULL,
    PRIMARY KEY (model, task)
) WITHOUT ROWID;
INSERT INTO newest_versions
SELECT c.model, r.task, r.task_version FROM result_rows r JOIN checkpoint_rows c ON c.id = r.checkpoint_id
WHERE r.id IN (SELECT MAX(r3.id) FROM result_rows r3 JOIN checkpoint_rows c3 ON c3.id = r3.checkpoint_id
               WHERE c3.superseded = 0 GROUP BY c3.model, r3.task);
"""

# What each result has cost, and each save: recorder/costs.py says what the columns count.
_COSTS = """
CREATE VIEW costs AS
SELECT c.model, c.iteration, c.fingerprint, r.task, r.task_version, r.source, c.superseded,
       json_extract(r.cost, '$.prompt_tokens') AS prompt_tokens,
       json_extract(r.cost, '$.unique_tokens') AS unique_tokens,
       json_extract(r.cost, '$.computed_tokens') AS computed_tokens,
       json_extract(r.cost, '$.generated_tokens') AS generated_tokens,
       json_extract(r.cost, '$.seconds') AS seconds,
       json_extract(r.cost, '$.wall_seconds') AS wall_seconds,
       COALESCE(json_extract(r.cost, '$.device_seconds'), json_extract(r.cost, '$.wall_seconds')) AS device_seconds,
       json_extract(r.cost, '$.tokens_per_second') AS tokens_per_second,
       json_extract(r.cost, '$.peak_memory_bytes') AS peak_memory_bytes,
       r.finished_at
FROM result_rows r JOIN checkpoint_rows c ON c.id = r.checkpoint_id;

CREATE VIEW checkpoint_costs AS
SELECT model, iteration, fingerprint, superseded, COUNT(*) AS tasks, SUM(prompt_tokens) AS prompt_tokens,
       SUM(unique_tokens) AS unique_tokens, SUM(computed_tokens) AS computed_tokens,
       SUM(generated_tokens) AS generated_tokens, SUM(seconds) AS seconds, SUM(wall_seconds) AS wall_seconds,
       SUM(device_seconds) AS device_seconds, SUM(computed_tokens) / NULLIF(SUM(seconds), 0) AS tokens_per_second,
       MAX(peak_memory_bytes) AS peak_memory_bytes
FROM costs GROUP BY model, iteration, fingerprint;
"""

# Jobs of a cluster's queue: a daemon that was killed finds them again instead of submitting twice.
_JOBS = """
CREATE TABLE job_rows (
    key TEXT PRIMARY KEY,
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoint_rows (id),
    stage TEXT NOT NULL CHECK (stage IN ('convert', 'evaluate')),
    runner TEXT NOT NULL,
    manifest TEXT NOT NULL,
    size INTEGER NOT NULL,
    job TEXT,
    state TEXT NOT NULL CHECK (state IN ('open', 'cancelling', 'ended')),
    noted_at REAL NOT NULL,
    ended_at REAL
) WITHOUT ROWID;
CREATE INDEX job_open ON job_rows (state) WHERE state <> 'ended';

CREATE VIEW jobs AS
SELECT c.model, c.iteration, c.fingerprint, j.stage, json_extract(j.runner, '$.type') AS runner, j.job, j.size, j.state,
       j.key, j.noted_at, j.ended_at
FROM job_rows j JOIN checkpoint_rows c ON c.id = j.checkpoint_id;
"""

Step = str | Callable[[sqlite3.Connection], None]  # SQL statements, or what they cannot say

MIGRATIONS: tuple[Step, ...] = (_FIRST, _MESSAGES, _ITEM_BLOCKS, into_blocks, _NEWEST_VERSIONS, _COSTS, _JOBS)


def open_database(path: Path) -> sqlite3.Connection:
    """Open (or make) the file in write-ahead-log mode, checked and migrated; autocommit, usable from any thread.

    Raises ``sqlite3.OperationalError`` when it cannot be opened, another ``sqlite3.DatabaseError`` when it is damaged.
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if path.stat().st_size < QUICK_CHECK_BYTES:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def move_aside(path: Path) -> Path:
    """Rename a damaged database and its companions to ``<name>.corrupt-<time>``, and return that path."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest schema, one transaction for all steps. The connection is in autocommit mode.

    Raises ``RuntimeError`` when the file was written by a later version of this program.
    """
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = _version(connection)  # again: another process may have been faster
        if done > len(MIGRATIONS):
            raise RuntimeError(f"schema version {done}, but this program knows only {len(MIGRATIONS)}: update it")
        for step in MIGRATIONS[done:]:
            if not isinstance(step, str):
                step(connection)
                continue
            for statement in step.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
