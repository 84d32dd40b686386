"""What the ledger promises: nothing lost, nothing twice, readable by anybody while it is written."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from recorder.ledger import Ledger, LedgerError
from recorder.ledger_schema import MIGRATIONS
from recorder.results import CheckpointRef, Item, Score, TaskResult, write_result

HOME = Path(__file__).resolve().parents[2]


def save(iteration: int = 1000, fingerprint: str = "a", model: str = "gpt") -> CheckpointRef:
    return CheckpointRef(model, iteration, fingerprint, f"/checkpoints/iter_{iteration:07d}", iteration / 1000)


def result(ref: CheckpointRef, value: float = 0.5, *, task: str = "boolq", version: str = "v1") -> TaskResult:
    score = Score("acc", value, 0.05, 2, chance=0.5)
    items = (Item("q1", "acc", 1.0), Item("q2", "acc", 0.0))
    return TaskResult(ref, task, version, "icl", (score,), items, {"seconds": 1.5}, finished_at=float(ref.iteration))


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def test_the_same_result_counts_once(ledger: Ledger) -> None:
    ledger.note_checkpoint(save())
    assert ledger.ingest(result(save()))
    assert not ledger.ingest(result(save(), value=0.9))
    assert [(row.value, row.iteration, row.tokens) for row in ledger.scores()] == [(0.5, 1000, 1.0)]
    assert len(ledger.items("gpt", 1000)) == 2
    assert len(ledger.outbox_pending("wandb")) == 1


def test_saving_an_iteration_again_supersedes_its_scores(ledger: Ledger) -> None:
    for fingerprint, value in (("a", 0.5), ("b", 0.7)):
        ledger.note_checkpoint(save(fingerprint=fingerprint))
        ledger.ingest(result(save(fingerprint=fingerprint), value))
    assert [row.value for row in ledger.scores()] == [0.7]
    assert {(row.value, row.superseded) for row in ledger.scores(include_superseded=True)} == {
        (0.5, True),
        (0.7, False),
    }
    assert [row.fingerprint for row in ledger.outbox_pending("wandb")] == ["b"]
    assert [(row.fingerprint, row.superseded) for row in ledger.checkpoints()] == [("a", True), ("b", False)]


def test_two_versions_of_a_task_are_kept_and_only_the_last_is_drawn(ledger: Ledger) -> None:
    ledger.ingest(result(save(1000), 0.5, version="old"))
    ledger.ingest(result(save(1000), 0.6, version="new"))
    ledger.ingest(result(save(2000), 0.7, version="new"))
    ledger.ingest(result(save(2000), 0.4, task="other", version="old"))
    drawn = [(row.iteration, row.task, row.task_version, row.value) for row in ledger.scores()]
    assert drawn == [(1000, "boolq", "new", 0.6), (2000, "boolq", "new", 0.7), (2000, "other", "old", 0.4)]
    assert len(ledger.scores(all_versions=True)) == 4


def test_the_version_that_is_drawn_is_each_models_own(ledger: Ledger) -> None:
    ledger.ingest(result(save(1000, model="finished"), 0.5, version="old"))
    ledger.ingest(result(save(1000, model="gpt"), 0.6, version="old"))
    ledger.ingest(result(save(1000, model="gpt"), 0.7, version="new"))
    assert [(row.model, row.task_version) for row in ledger.scores()] == [("finished", "old"), ("gpt", "new")]


def test_items_are_those_of_the_version_that_is_drawn(ledger: Ledger) -> None:
    ledger.ingest(replace(result(save(1000), version="new"), items=(Item("q1", "acc", 0.25),)))
    ledger.ingest(replace(result(save(1000), version="old"), items=(Item("q1", "acc", 0.75),)))
    ledger.ingest(result(save(2000), version="new"))
    assert [item.value for item in ledger.items("gpt", 1000)] == [0.25]


def test_anybody_reads_the_views_while_the_daemon_writes(ledger: Ledger) -> None:
    ledger.note_checkpoint(save(), "evaluating")
    ledger.ingest(result(save()))
    with sqlite3.connect(f"file:{ledger.path}?mode=ro", uri=True) as reader:
        cursor = reader.execute("SELECT * FROM scores")
        columns = ", ".join(column[0] for column in cursor.description)
        assert columns == (
            "model, iteration, tokens, task, task_version, metric, value, stderr, n, higher_is_better, source, "
            "superseded, recorded_at"
        )
        assert cursor.fetchone()[:12] == ("gpt", 1000, 1.0, "boolq", "v1", "acc", 0.5, 0.05, 2, 1, "icl", 0)
        cursor = reader.execute("SELECT * FROM checkpoints")
        columns = ", ".join(column[0] for column in cursor.description)
        assert columns == "model, iteration, path, fingerprint, state, error"
        assert cursor.fetchone() == ("gpt", 1000, "/checkpoints/iter_0001000", "a", "evaluating", None)
    reader.close()


def test_states_attempts_errors_and_logs_are_kept(ledger: Ledger) -> None:
    ledger.note_checkpoint(save())
    ledger.note_task(save(), "boolq", "queued", version="v1")
    ledger.note_task(save(), "boolq", "running", version="v1", log="/logs/a.log")
    ledger.note_task(save(), "boolq", "failed", version="v1", error="out of memory")
    ledger.note_task(save(), "boolq", "running", version="v1")
    ledger.note_task(save(), "boolq", "failed", version="v1", error="again")
    ledger.set_state(save(), "failed", "1 task failed")
    (row,) = ledger.tasks()
    assert (row.state, row.attempts, row.error, row.log) == ("failed", 2, "again", "/logs/a.log")
    assert [(row.state, row.error) for row in ledger.checkpoints()] == [("failed", "1 task failed")]
    ledger.ingest(result(save()))
    assert [(row.state, row.error) for row in ledger.tasks()] == [("done", None)]


def test_what_was_delivered_is_not_pending_any_more(ledger: Ledger) -> None:
    for iteration in (3000, 1000, 2000):
        ledger.ingest(result(save(iteration)))
    pending = ledger.outbox_pending("wandb")
    assert [row.iteration for row in pending] == [1000, 2000, 3000]
    ledger.outbox_done("wandb", [row.id for row in pending[:2]])
    assert [row.iteration for row in ledger.outbox_pending("wandb")] == [3000]


def test_settings_are_remembered(ledger: Ledger) -> None:
    assert ledger.recall("entity") is None
    ledger.remember("entity", "x")
    ledger.remember("entity", "y")
    assert ledger.recall("entity") == "y"


def wrongs() -> list[TaskResult]:
    good = result(save())
    score, item = good.scores[0], good.items[0]
    return [
        result(save(), float("nan")),
        result(save(), float("inf")),
        result(save(), "0.5"),  # type: ignore[arg-type]
        replace(good, scores=(replace(score, stderr=float("inf")),)),
        replace(good, scores=(score, score)),
        replace(good, items=(replace(item, value=float("-inf")),)),
        replace(good, checkpoint=replace(save(), tokens=float("nan"))),
        replace(good, checkpoint=replace(save(), iteration="1000")),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("number", range(len(wrongs())))
def test_a_number_that_is_none_leaves_nothing_behind(ledger: Ledger, number: int) -> None:
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: gpt iteration 1000, task boolq: "):
        ledger.ingest(wrongs()[number])
    assert ledger.scores() == [] and ledger.outbox_pending("wandb") == []
    assert ledger.ingest(result(save()))


def write_results(work_dir: Path, iterations: tuple[int, ...]) -> None:
    for iteration in iterations:
        path = work_dir / "gpt" / f"iter_{iteration:07d}" / "results" / "gpt" / "boolq.json"
        write_result(path, result(save(iteration), iteration / 10000))


def test_a_deleted_ledger_is_rebuilt_from_the_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_results(tmp_path, (1000, 2000))
    (tmp_path / "gpt" / "iter_0001000" / "results" / "gpt" / "torn.json").write_text('{"format": "autoeval-res')
    (tmp_path / "gpt" / "iter_0001000" / "plan.json").write_text("{}")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.rebuild(tmp_path) == 2
    assert ledger.rebuild(tmp_path) == 0
    assert [(row.iteration, row.value) for row in ledger.scores()] == [(1000, 0.1), (2000, 0.2)]
    assert "torn.json" in caplog.text and "plan.json" not in caplog.text
    ledger.close()


@pytest.mark.parametrize("damage", ["text", "middle"])
def test_a_damaged_ledger_is_moved_aside_and_rebuilt(tmp_path: Path, damage: str) -> None:
    write_results(tmp_path, (1000, 2000))
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.rebuild(tmp_path)
    ledger.close()
    content = path.read_bytes()
    path.write_bytes(
        b"not a database at all" * 100 if damage == "text" else content[:4096] + b"\xff" * len(content[4096:])
    )
    ledger = Ledger(path)
    assert len(ledger.scores()) == 2
    assert len(list(tmp_path.glob("ledger.sqlite.corrupt-*"))) == 1
    ledger.close()


def test_a_ledger_of_an_earlier_program_keeps_everything(tmp_path: Path) -> None:
    """Made by the first two steps of the schema, as it was: items in rows, no table of the versions that are drawn."""
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as old:
        for step in MIGRATIONS[:2]:
            assert isinstance(step, str)
            old.executescript(step)
        old.executescript(
            "INSERT INTO checkpoint_rows VALUES (1, 'gpt', 1000, 'a', '/x', 1.0, 'recorded', NULL, 0, 0, 0);"
            "INSERT INTO result_rows VALUES (1, 1, 'boolq', 'v1', 'icl', '{}', 0, 0), (2, 1, 'boolq', 'v2', 'icl', '{}', 0, 1);"
            "INSERT INTO score_rows VALUES (1, 'acc', 0.4, 0.1, 3, 1, NULL, 0), (2, 'acc', 0.5, 0.1, 3, 1, 0.5, 0);"
            "INSERT INTO item_rows VALUES (2, 'acc', 'q2', 0.25), (2, 'acc', 'q1', 1.0), (2, 'f1', 'q1', 0.0);"
            "PRAGMA user_version = 2;"
        )
        old.commit()
    ledger = Ledger(path)
    assert [(row.task_version, row.value) for row in ledger.scores()] == [("v2", 0.5)]
    assert [tuple(row) for row in ledger.items("gpt", 1000)] == [
        (1000, "boolq", "acc", "q1", 1.0),
        (1000, "boolq", "acc", "q2", 0.25),
        (1000, "boolq", "f1", "q1", 0.0),
    ]
    ledger.close()
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_items_of_many_checkpoints_share_their_keys(ledger: Ledger) -> None:
    """A thousand items are one small row a checkpoint; repeats of an item are averaged."""
    for iteration in range(1000, 11000, 1000):
        items = tuple(Item(f"question-{k:06d}", "acc", float(k % 3 == 0)) for k in range(1000))
        ledger.ingest(replace(result(save(iteration)), items=(*items, Item("question-000000", "acc", 0.0))))
    sizes = ledger._connection.execute("SELECT COUNT(*), SUM(LENGTH(outcomes)) FROM item_blocks").fetchone()
    assert sizes[0] == 10 and sizes[1] < 10_000
    assert ledger._connection.execute("SELECT COUNT(*) FROM item_sets").fetchone() == (1,)
    outcomes = ledger.outcomes("gpt", 5000)["boolq.acc"].values
    assert len(outcomes) == 1000 and outcomes["question-000000"] == 0.5 and outcomes["question-000003"] == 1.0


def test_who_only_shows_the_ledger_leaves_a_damaged_one_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite is damaged .*: start evaluator\.py again"):
        Ledger(path, repair=False)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_ledger_that_stays_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ledger_schema.BUSY_SECONDS", 0.05)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: database is locked"):
            ledger.note_checkpoint(save())
    ledger.note_checkpoint(save())
    assert len(ledger.checkpoints()) == 1
    ledger.close()


def test_an_error_that_names_a_file_in_no_encoding_is_kept(ledger: Ledger) -> None:
    ledger.note_checkpoint(save(), "failed", "cannot read /data/\udcff.pt")
    assert ledger.checkpoints()[0].error == "cannot read /data/?.pt"


def test_a_ledger_of_a_later_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: schema version 999"):
        Ledger(path)


def test_threads_and_processes_write_at_once(tmp_path: Path) -> None:
    """Two processes and three threads deliver overlapping results: each is there once."""
    path = tmp_path / "ledger.sqlite"
    write_results(tmp_path, tuple(range(1000, 21000, 1000)))
    program = "import sys; from recorder.ledger import Ledger; Ledger(sys.argv[1]).rebuild(sys.argv[2])"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(tmp_path)], cwd=HOME) for _ in range(2)
    ]
    ledger = Ledger(path)
    threads = [threading.Thread(target=ledger.rebuild, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(ledger.scores()) == 20 and len(ledger.outbox_pending("wandb")) == 20
    ledger.close()


def test_scores_are_read_in_order_without_sorting_or_scanning(ledger: Ledger) -> None:
    """What makes a ledger of 200,000 scores answer at once (benchmarks/ledger.py): every table is entered by an index."""
    ledger.ingest(result(save()))
    asked: list[str] = []
    ledger._connection.set_trace_callback(asked.append)
    ledger.scores(models=["gpt"])
    ledger.outcomes("gpt", 1000)
    ledger._connection.set_trace_callback(None)
    for query in asked:
        steps = [row[3] for row in ledger._connection.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert not [step for step in steps if step.startswith("SCAN")], steps
        assert "CROSS" not in query or not [step for step in steps if "TEMP B-TREE" in step], steps


def test_jobs_that_have_not_ended_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(Ledger(path)) as ledger:
        ledger.note_checkpoint(save(), "evaluating")
        for key in ("a", "b"):
            ledger.note_job(save(), key, stage="evaluate", runner='{"type": "slurm"}', manifest=tmp_path / key, size=3)
        ledger.change_job("a", "open", "17")
        ledger.change_job("a", "cancelling")
    with contextlib.closing(Ledger(path)) as ledger:
        found = {row.key: (row.job, row.state, row.size, row.fingerprint) for row in ledger.jobs("gpt")}
        assert found == {"a": ("17", "cancelling", 3, "a"), "b": (None, "open", 3, "a")}
        ledger.change_job("b", "ended")
        assert [row.key for row in ledger.jobs("gpt")] == ["a"] and not ledger.jobs("another")
        assert ledger.query("SELECT key, runner, state FROM jobs ORDER BY key") == [
            ("a", "slurm", "cancelling"),
            ("b", "slurm", "ended"),
        ]
