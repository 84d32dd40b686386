"""What a daemon makes of the jobs of one that was killed: taken up again, not submitted twice, not left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.runners.jobs import JobState
from autoeval.runners.places import Place
from autoeval.tasks.claims import Claims
from autoeval.tasks.events import EventFile
from autoeval.tasks.order import Order
from tests.runners.scripted_jobs import DONE, END, REF, TASKS, Jobs, World, finish, good, world_in


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_in(tmp_path, monkeypatch) as made:
        yield made


def test_an_answer_that_was_lost_leads_to_no_second_job(world: World) -> None:
    worker = world.worker(jobs := Jobs(good, loses_answers=1))
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done" and jobs.asked == 1
    worker.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_former_daemons_job_is_taken_up_again(world: World, known: bool) -> None:
    """``known``: the job's id is in the ledger; otherwise the daemon was killed between sbatch and writing it down."""
    hold = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if "a" in order.mine:
            finish(order, emit, "a")
            claims.take("a")
        hold.wait(120)
        return good(order, emit, claims, job)

    jobs = Jobs(script)
    first = world.worker(jobs)
    first.submit(world.plan_path)
    world.until("task_done")
    first.close(leave=True)
    (row,) = world.ledger.jobs("m")
    assert (row.job, row.state) == ("1", "open") and not jobs.cancelled
    if not known:
        world.ledger._connection.execute("UPDATE job_rows SET job = NULL")
    world.told.clear()
    second = world.worker(jobs)
    second.settle([REF.fingerprint])
    second.submit(world.plan_path)
    assert world.until("task_done")["task"] == "a"
    hold.set()
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 1
    second.close()
    assert world.ledger.jobs("m") == []


def test_what_failed_in_a_job_that_ended_under_a_former_daemon_is_tried_again(world: World) -> None:
    hold = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job == 2:
            hold.wait(120)
        if job != 1:
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        claims.take("a")
        claims.take("c")
        finish(order, emit, "c")
        emit("task_failed", task="a", version="v1", error="a bad moment", log="l")
        emit("checkpoint_done")
        return DONE

    jobs = Jobs(script, arrays=False)
    first = world.worker(jobs)
    first.submit(world.plan_path)
    world.until("task_failed")
    deadline = time.monotonic() + 90
    while len(world.ledger.jobs("m")) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.close(leave=True)
    world.told.clear()
    second = world.worker(jobs)
    second.submit(world.plan_path)
    hold.set()
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 3 and not world.tasks("task_failed")
    second.close()


def test_what_nobody_wants_any_more_is_cancelled(world: World) -> None:
    hold = threading.Event()

    def script(_order: Order, emit: EventFile, _claims: Claims, _job: int) -> JobState:
        emit("ready", pid=1, host="h")
        hold.wait(120)
        return DONE

    jobs = Jobs(script)
    worker = world.worker(jobs)
    worker.submit(world.plan_path)
    while not jobs.asked:
        time.sleep(0.01)
    worker.close(leave=True)
    worker = world.worker(jobs, partition="other")  # another configuration now: its queue is still found
    worker._books._places[world.ledger.jobs("m")[0].runner] = Place({}, lambda _: jobs)
    worker.settle([])
    while world.ledger.jobs("m"):
        time.sleep(0.01)
    assert jobs.cancelled == ["1"]
    worker.submit(world.plan_path)
    while jobs.asked < 2:
        time.sleep(0.01)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 10 and set(jobs.cancelled) == {"1", "2_0", "2_1"}
    assert world.ledger.jobs("m") == []
    hold.set()
