"""What the daemon's worker on a cluster makes of jobs that end well, badly or not at all, and of a queue that is away.

The jobs here are functions that write the same files as ``autoeval.tasks.job``; the real ones are run on Slurm, Ray and
the imitation of DLC in ``test_daemon_on_*``.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from autoeval.convert import ConversionError, OutputError
from autoeval.runners import cluster_worker
from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused
from autoeval.tasks.claims import Claims
from autoeval.tasks.evaluation import failure_event
from autoeval.tasks.events import EventFile, Tail
from autoeval.tasks.order import Order
from tests.runners.scripted_jobs import END, TASKS, Jobs, Limits, World, good, world_in


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_in(tmp_path, monkeypatch) as made:
        yield made


def test_tasks_are_dealt_out_to_one_array_and_every_event_arrives_once(world: World) -> None:
    jobs = Jobs(good)
    worker = world.worker(jobs)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 1 and len(jobs.states["1"]) == 2
    assert [event["event"] for event in world.told].count("loaded") == 1
    assert world.ledger.recall("load_seconds/m") == "2.0"
    worker.submit(world.plan_path)  # all is there: no job is needed
    world.told.clear()
    assert world.until(*END)["event"] == "checkpoint_done" and world.tasks() == list(TASKS) and jobs.asked == 1
    world.until_no_job_is_left()
    worker.close()
    assert not jobs.cancelled
    assert world.ledger.query("SELECT stage, job, size, state FROM jobs") == [("evaluate", "1", 2, "ended")]


def test_conversion_is_a_job_of_its_own_and_may_come_before_its_turn(tmp_path: Path, world: World) -> None:
    del world
    world = World(tmp_path / "megatron", "torch_dist")
    jobs = Jobs(good, arrays=False)
    worker = world.worker(jobs)
    worker.convert_ahead(world.plan)
    deadline = time.monotonic() + 90
    while not world.ledger.query("SELECT 1 FROM jobs WHERE stage = 'convert' AND state = 'ended'"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    kinds = [event["event"] for event in world.told]
    assert kinds.index("converted") < kinds.index("loaded") and kinds.count("converted") == 1
    assert (
        world.ledger.query("SELECT stage, size FROM jobs ORDER BY noted_at") == [("convert", 1)] + [("evaluate", 1)] * 2
    )
    worker.close()
    world.ledger.close()


def test_what_was_converted_ahead_and_removed_for_others_is_converted_again(tmp_path: Path, world: World) -> None:
    del world
    world = World(tmp_path / "megatron", "torch_dist")
    jobs = Jobs(good)
    worker = world.worker(jobs)
    worker.convert_ahead(world.plan)
    deadline = time.monotonic() + 90
    while not world.ledger.query("SELECT 1 FROM jobs WHERE stage = 'convert' AND state = 'ended'"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shutil.rmtree(world.plan.converted)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done" and world.plan.converted.is_dir()
    stages = world.ledger.query("SELECT stage FROM jobs ORDER BY noted_at")
    assert stages == [("convert",), ("convert",), ("evaluate",)]
    worker.close()
    world.ledger.close()


def test_a_task_that_kills_its_job_fails_alone_after_its_tries(world: World) -> None:
    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if "b" not in order.mine or not claims.take("b"):
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        emit("task_started", task="b", version="v1", log="l")
        return JobState("ended", "FAILED", again=True)

    jobs = Jobs(script)
    worker = world.worker(jobs)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == ["a", "c"] and world.tasks("task_failed") == ["b"]
    failed = next(event for event in world.told if event["event"] == "task_failed")
    assert "job 2_0: ended with code 1 during 'b' (2 times; log: " in failed["error"]
    worker.close()


@pytest.mark.parametrize("name", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_what_is_no_fault_of_the_task_is_tried_again(world: World, name: str) -> None:
    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1 or "a" not in order.mine:
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        claims.take("a")
        emit("task_started", task="a", version="v1", log="l")
        return JobState("ended", name, again=True)

    jobs = Jobs(script)
    worker = world.worker(jobs)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 2 and not world.tasks("task_failed")
    worker.close()


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize(
    ("end", "attempts"),
    [
        (JobState("ended", "NODE_FAIL", again=True), 2),
        (JobState("ended", "CANCELLED", "who submitted it has ended", again=True), 1),  # which is no fault of anything
    ],
)
def test_jobs_that_are_lost_together_while_they_load_are_one_failure(
    world: World, end: JobState, attempts: int, heard: bool
) -> None:
    both = threading.Barrier(2)

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1:
            return good(order, emit, claims, job)
        if heard:
            emit("ready", pid=1, host="h")
        both.wait(90)
        return end

    jobs = Jobs(script)
    worker = world.worker(jobs, Limits(attempts=attempts))
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and not world.tasks("task_failed")
    worker.close()


def test_a_job_that_somebody_cancels_is_not_tried_again(world: World) -> None:
    def script(order: Order, emit: EventFile, claims: Claims, _job: int) -> JobState:
        emit("ready", pid=1, host="h")
        claims.take(order.mine[0])
        emit("task_started", task=order.mine[0], version="v1", log="l")
        return JobState("ended", "CANCELLED", "by 1000")

    jobs = Jobs(script)
    worker = world.worker(jobs, shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks("task_failed") == list(TASKS) and jobs.asked == 1
    assert all("CANCELLED (by 1000)" in event["error"] for event in world.told if event["event"] == "task_failed")
    worker.close()


def test_jobs_that_cannot_load_the_model_fail_the_checkpoint_with_their_own_words(world: World) -> None:
    def script(_order: Order, emit: EventFile, _claims: Claims, job: int) -> JobState:
        emit("ready", pid=1, host="h")
        emit("checkpoint_failed", error=f"no such layer ({job})", log="l", again=False)
        return JobState("ended", "FAILED", again=True)

    worker = world.worker(jobs := Jobs(script), shares=1)
    worker.submit(world.plan_path)
    last = world.until(*END)
    assert (last["event"], last["error"], jobs.asked) == ("checkpoint_failed", "no such layer (1)", 1)
    worker.close()


def test_a_job_that_hangs_is_ended_and_tried_again(world: World) -> None:
    release, limits = threading.Event(), Limits(heartbeat_timeout=0.3)

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1:
            limits.heartbeat_timeout = None  # on a busy machine, or a slow disk, it would seem to hang as well
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        claims.take("a")
        emit("task_started", task="a", version="v1", log="l")
        release.wait(120)
        return JobState("ended", "CANCELLED")

    jobs = Jobs(script)
    worker = world.worker(jobs, limits, shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.cancelled == ["1_0"] and jobs.asked == 2
    release.set()
    worker.close()


def test_an_end_that_the_queue_has_not_heard_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_worker, "ASK_AGAIN_SECONDS", 0.1)
    release, limits = threading.Event(), Limits(heartbeat_timeout=0.3)

    class Deaf(Jobs):
        def cancel(self, jobs: Iterable[str]) -> None:
            if self.cancelled:
                super().cancel(jobs)
            else:
                self.cancelled.append("not heard")

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1:
            limits.heartbeat_timeout = None
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        release.wait(120)
        return JobState("ended", "CANCELLED")

    jobs = Deaf(script)
    worker = world.worker(jobs, limits, shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.cancelled[:2] == ["not heard", "1_0"] and jobs.asked == 2
    release.set()
    worker.close()


def test_a_job_that_is_back_in_the_queue_does_not_hang(world: World) -> None:
    jobs, limits = Jobs(good), Limits(heartbeat_timeout=1.0)

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        jobs.states[str(job)][0] = JobState("waiting", "PENDING", "BeginTime")  # preempted, and put back
        emit("ready", pid=1, host="h")
        time.sleep(2.0)  # twice what may pass without a sign of life
        limits.heartbeat_timeout = None
        jobs.states[str(job)][0] = JobState("running", "RUNNING")
        return good(order, emit, claims, job)

    jobs.script = script
    worker = world.worker(jobs, limits, shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 1 and not jobs.cancelled
    worker.close()


def test_what_was_not_submitted_yet_when_the_checkpoint_failed_never_is(world: World) -> None:
    full = threading.Event()

    class Full(Jobs):
        def submit(self, array: JobArray) -> str:
            if self.asked and full.is_set():
                raise QueueError("submit limit")
            full.set()
            return super().submit(array)

    def script(_order: Order, emit: EventFile, _claims: Claims, _job: int) -> JobState:
        emit("ready", pid=1, host="h")
        while not refused():
            time.sleep(0.01)
        emit("checkpoint_failed", error="no such layer", log="l", again=False)
        return JobState("ended", "FAILED", again=True)

    jobs = Full(script, arrays=False)
    worker = world.worker(jobs)

    def refused() -> bool:
        return any(array.asked and array.job is None for batch in list(worker._batches) for array in list(batch.arrays))

    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_failed"
    full.clear()
    world.until_no_job_is_left()
    assert jobs.asked == 1
    worker.close()


def test_a_queue_that_is_away_is_waited_for_and_one_that_refuses_is_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    hold = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        hold.wait(120)
        return good(order, emit, claims, job)

    jobs = Jobs(script, away="Unable to contact slurm controller")
    worker = world.worker(jobs)
    worker.submit(world.plan_path)
    while "waiting until it can be asked" not in caplog.text:
        time.sleep(0.01)
    jobs.away = ""
    while not jobs.asked:
        time.sleep(0.01)
    jobs.away = "Unable to contact slurm controller"
    while "what runs goes on" not in caplog.text:
        time.sleep(0.01)
    hold.set()  # they end while the queue cannot be asked: what they have written counts
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.asked == 1
    jobs.away, jobs.refuses = "", "invalid partition"
    (Path(world.plan.directory) / "results" / "m" / "a.json").unlink()
    worker.submit(world.plan_path)
    broken = world.until(*END)
    assert broken["event"] == "broken" and isinstance(broken["error"], QueueRefused)
    worker.close()


def test_another_conversion_at_work_is_worth_another_try(world: World) -> None:
    """One of a former daemon that is being cancelled, say."""
    assert failure_event(world.plan, OutputError("another conversion is writing here"))["again"]
    assert not failure_event(world.plan, ConversionError("no such layer"))["again"]


def test_a_line_that_a_kill_cut_short_costs_no_other(tmp_path: Path) -> None:
    file, tail = tmp_path / "events.jsonl", Tail(tmp_path / "events.jsonl")
    assert tail.read() == []
    EventFile(file)("ready", pid=1)
    with file.open("a") as stream:
        stream.write('{"event": "task_st')
    assert tail.read() == [{"event": "ready", "pid": 1}]
    EventFile(file)("ready", pid=2)
    assert tail.read() == [{"event": "ready", "pid": 2}] and tail.read() == []


def test_claims(tmp_path: Path) -> None:
    one, two = Claims(tmp_path / "claims", "part0"), Claims(tmp_path / "claims", "part1")
    assert one.take("mmlu/x") and one.take("mmlu/x") and not two.take("mmlu/x")
    assert two.holder("mmlu/x") == "part0" and not two.may_be_taken("mmlu/x") and two.may_be_taken("b")
    two.release(["mmlu/x"])
    assert not two.may_be_taken("mmlu/x")
    one.release(["mmlu/x", "b"])
    assert two.take("mmlu/x")
    won = [Claims(tmp_path / "claims", f"p{number}") for number in range(8)]
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda claims=claims: taken.append(claims.take("t"))) for claims in won]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == 1 and not list((tmp_path / "claims").glob(".claim-*"))
