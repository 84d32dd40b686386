"""What evaluating has cost: the ledger's views, the report's section and W&B's ``cost/`` keys say the same."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.costs import checkpoint_costs, task_costs
from recorder.ledger import Ledger
from recorder.report.costs import costs_section
from recorder.report.facts import Facts
from recorder.results import CheckpointRef, Score, TaskResult
from recorder.wandb_rows import history_rows

KEYS = ("prompt_tokens", "unique_tokens", "computed_tokens", "generated_tokens", "seconds", "wall_seconds")


def result(iteration: int, task: str, cost: dict[str, float], fingerprint: str = "one") -> TaskResult:
    ref = CheckpointRef("gpt2-tiny", iteration, f"{fingerprint}-{iteration}", f"/saves/{iteration}", iteration / 1000)
    return TaskResult(ref, task, "v1", "icl", (Score("acc", 0.5, 0.1, 25),), (), cost, 1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as one:
        measured = dict(zip(KEYS, (400, 100, 110, 0, 2.0, 3.0), strict=True))
        more = {"device_seconds": 6.0, "tokens_per_second": 55.0, "peak_memory_bytes": 2e9}
        one.ingest(result(100, "first", measured | more))
        one.ingest(result(100, "second", measured | more | {"generated_tokens": 40, "peak_memory_bytes": 3e9}))
        one.ingest(result(200, "first", {"wall_seconds": 5.0}))  # as earlier releases told it
        for iteration in (100, 200):
            one.set_state(result(iteration, "first", {}).checkpoint, "evaluated")
        yield one


def test_the_views_can_be_asked_with_plain_sql(ledger: Ledger) -> None:
    with contextlib.closing(sqlite3.connect(ledger.path)) as connection:
        rows = connection.execute(
            "SELECT iteration, tasks, device_seconds, prompt_tokens FROM checkpoint_costs"
        ).fetchall()
        assert rows == [(100, 2, 12.0, 800), (200, 1, 5.0, None)]
        tasks = connection.execute("SELECT task, computed_tokens FROM costs WHERE iteration = 100").fetchall()
        assert sorted(tasks) == [("first", 110), ("second", 110)]


def test_sums_rates_and_peaks(ledger: Ledger) -> None:
    first, second = checkpoint_costs(ledger)
    assert first.figures() == {
        "device_seconds": 12.0, "wall_seconds": 6.0, "seconds": 4.0, "prompt_tokens": 800.0, "unique_tokens": 200.0,
        "computed_tokens": 220.0, "generated_tokens": 40.0, "tokens_per_second": 55.0, "peak_memory_bytes": 3e9,
    }  # fmt: skip
    assert second.figures() == {"device_seconds": 5.0, "wall_seconds": 5.0}
    assert [one.task for one in task_costs(ledger)] == ["first", "second", "first"]


def test_a_save_over_a_save_was_paid_too(ledger: Ledger) -> None:
    ledger.note_checkpoint(result(100, "first", {}, "another").checkpoint)
    assert [(one.iteration, one.superseded) for one in checkpoint_costs(ledger)] == [(100, True), (200, False)]


def test_the_rows_of_wandb_have_them(ledger: Ledger) -> None:
    costs = {(one.model, one.iteration, one.fingerprint): one.figures() for one in checkpoint_costs(ledger)}
    pending = ledger.outbox_pending("wandb")
    rows = history_rows(pending, ledger.checkpoints(), ledger.tasks(), ledger.scores(), [], costs)["gpt2-tiny"]
    assert rows[0].values["cost/device_seconds"] == 12.0 and "cost/device_seconds" in rows[0].due
    assert {key for key in rows[1].values if key.startswith("cost/")} == {"cost/device_seconds", "cost/wall_seconds"}


def test_the_report_shows_them(ledger: Ledger) -> None:
    html = costs_section(Facts(ledger))
    assert "2 checkpoints took 17.0 s of a device, 8.5 s each." in html
    assert "3.8×" in html and "3.00 GB" in html  # (800 + 40) / 220


def test_a_ledger_without_results_has_no_such_section(tmp_path: Path) -> None:
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        assert costs_section(Facts(ledger)) == ""
