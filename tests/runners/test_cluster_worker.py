"""What the daemon's worker on a cluster makes of jobs that end well, badly or not at all, and of a queue that is away.

The jobs here are functions that write the same files as ``autoeval.tasks.job``; the real ones are run on Slurm, Ray and
the imitation of DLC in ``test_daemon_on_*``.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from autoeval.convert import ConversionError, OutputError
from autoeval.convert.receipt import Receipt, write_receipt
from autoeval.runners import cluster_worker
from autoeval.runners.cluster_worker import ClusterWorker
from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused
from autoeval.runners.places import Place
from autoeval.tasks.claims import Claims
from autoeval.tasks.evaluation import failure_event
from autoeval.tasks.events import EventFile, Tail
from autoeval.tasks.order import Order, load_order
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan, save_plan
from recorder.files import write_json
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Score, TaskResult, write_result

REF = CheckpointRef("m", 100, "f" * 32, "/checkpoints/100")
TASKS = ("a", "b", "c")
DONE = JobState("ended", "COMPLETED", again=True)
Script = Callable[[Order, EventFile, Claims, int], JobState]


@dataclass
class Limits:
    attempts: int = 2
    task_time_limit: float | None = None
    heartbeat_timeout: float | None = None


@dataclass
class Jobs:
    """A queue whose jobs are threads that run ``script`` with their order; ``asked`` counts submissions."""

    script: Script
    arrays: bool = True
    away: str = ""
    refuses: str = ""
    loses_answers: int = 0
    asked: int = 0
    states: dict[str, list[JobState]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)

    def submit(self, array: JobArray) -> str:
        if self.away:
            raise QueueError(self.away)
        if self.refuses:
            raise QueueRefused(self.refuses)
        self.asked += 1
        job = str(self.asked)
        self.keys[array.key] = job
        manifest = Path(array.command[-1])
        self.states[job] = [JobState("running", "RUNNING") for _ in range(array.size)]
        for number in range(array.size):
            threading.Thread(target=self._run, args=(manifest, job, number), daemon=True).start()
        if self.loses_answers:
            self.loses_answers -= 1
            raise QueueError("the answer was lost")
        return job

    def _run(self, manifest: Path, job: str, number: int) -> None:
        import json

        task = json.loads(manifest.read_text())["tasks"][number]
        order = load_order(Path(task["command"][-1]))
        emit = EventFile(Path(order.events))
        state = self.script(order, emit, Claims(Path(order.claims), order.owner), int(job))
        if state.name in ("COMPLETED", "FAILED"):
            write_json(Path(task["record"]), {"code": 0 if state.name == "COMPLETED" else 1})
        if self.states[job][number].kind == "running":
            self.states[job][number] = state

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        if self.away:
            return {job: [JobState("unknown", reason=self.away)] * size for job, size in jobs.items()}
        return {job: list(self.states[job]) for job in jobs}

    def cancel(self, jobs: Iterable[str]) -> None:
        for element in jobs:
            self.cancelled.append(element)
            job, _, number = element.partition("_")
            for place in [int(number)] if number else range(len(self.states[job])):
                if self.states[job][place].kind == "running":
                    self.states[job][place] = JobState("ended", "CANCELLED")

    def told(self, log: str) -> str | None:
        del log
        return None

    def find(self, key: str) -> str | None:
        if self.away:
            raise QueueError(self.away)
        return self.keys.get(key)


def finish(order: Order, emit: EventFile, task: str) -> None:
    version = dict(order.plan.expected)[task]
    emit("task_started", task=task, version=version, log="l")
    write_result(
        order.plan.result_path(task),
        TaskResult(
            order.plan.checkpoint, task, version, "icl", (Score("acc", 0.5, 0.1, 4),), (), {"wall_seconds": 1.0}, 1.0
        ),
    )
    emit("task_done", task=task, version=version, result=str(order.plan.result_path(task)))


def good(order: Order, emit: EventFile, claims: Claims, _job: int) -> JobState:
    emit("ready", pid=1, host="h")
    if order.stage == "convert":
        emit("converting")
        of_this_save = {field.name: None for field in fields(Receipt)}
        of_this_save |= {"fingerprint": order.plan.checkpoint.fingerprint, "files": {}}
        order.plan.converted.mkdir(parents=True, exist_ok=True)
        write_receipt(order.plan.converted, Receipt(**of_this_save))
        emit("converted", seconds=1.0)
    else:
        emit("loaded", seconds=2.0)
        for task in order.mine:
            if claims.take(task):
                finish(order, emit, task)
    emit("checkpoint_done")
    return DONE


class World:
    """A worker, what it tells, and its ledger."""

    def __init__(self, directory: Path, format: str = "huggingface") -> None:
        self.ledger = Ledger(directory / "ledger.sqlite")
        self.ledger.note_checkpoint(REF, "evaluating")
        self.plan = EvaluationPlan(
            REF,
            format,
            str(directory / "source"),
            str(directory / "m" / "iter_0000100"),
            str(directory / "logs"),
            TaskPlan(IclPlan(("x",), "d")),
            tuple((task, "v1") for task in TASKS),
        )
        self.plan_path = directory / "plan.json"
        save_plan(self.plan_path, self.plan)
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.told: list[dict[str, Any]] = []

    def worker(self, jobs: Jobs, limits: Limits | None = None, shares: int = 2, **options: Any) -> ClusterWorker:
        def deal(_plan: EvaluationPlan, names: Any) -> list[list[str]]:
            return [share for number in range(shares) if (share := list(names[number::shares]))]

        place = Place({"type": "slurm", "max_num_workers": shares, **options}, lambda _: jobs)
        conversion = Place({"type": "slurm", "num_gpus": 0, **options}, lambda _: jobs)
        worker = ClusterWorker(
            lambda _worker, event: self.events.put(event),
            self.ledger,
            "m",
            place,
            conversion,
            deal,
            limits=limits or Limits(),
        )
        return worker

    def until(self, *kinds: str, seconds: float = 20.0) -> dict[str, Any]:
        """The first event of these kinds; those before it are ``told`` too."""
        deadline = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            self.told.append(event)
            if event["event"] in kinds:
                return event

    def tasks(self, kind: str = "task_done") -> list[str]:
        return sorted(event["task"] for event in self.told if event["event"] == kind)


END = ("checkpoint_done", "checkpoint_failed", "checkpoint_missed", "broken")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(cluster_worker, "READ_SECONDS", 0.02)
    monkeypatch.setattr(cluster_worker, "GREATEST_WAIT", 0.05)
    monkeypatch.setattr(cluster_worker, "LEAST_WAIT", 0.02)
    monkeypatch.setattr("autoeval.runners.places.GREATEST_PAUSE", 0.1)
    made = World(tmp_path)
    yield made
    made.ledger.close()


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
    worker.close()
    assert world.ledger.jobs("m") == [] and not jobs.cancelled
    assert world.ledger.query("SELECT stage, job, size, state FROM jobs") == [("evaluate", "1", 2, "ended")]


def test_conversion_is_a_job_of_its_own_and_may_come_before_its_turn(tmp_path: Path, world: World) -> None:
    del world
    world = World(tmp_path / "megatron", "torch_dist")
    jobs = Jobs(good, arrays=False)
    worker = world.worker(jobs)
    worker.convert_ahead(world.plan)
    deadline = time.monotonic() + 10
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
    deadline = time.monotonic() + 10
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
    release = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1:
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        claims.take("a")
        emit("task_started", task="a", version="v1", log="l")
        release.wait(30)
        return JobState("ended", "CANCELLED")

    jobs = Jobs(script)
    worker = world.worker(jobs, Limits(heartbeat_timeout=0.3), shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.cancelled == ["1_0"] and jobs.asked == 2
    release.set()
    worker.close()


def test_an_end_that_the_queue_has_not_heard_is_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_worker, "ASK_AGAIN_SECONDS", 0.1)
    release = threading.Event()

    class Deaf(Jobs):
        def cancel(self, jobs: Iterable[str]) -> None:
            if self.cancelled:
                super().cancel(jobs)
            else:
                self.cancelled.append("not heard")

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        if job > 1:
            return good(order, emit, claims, job)
        emit("ready", pid=1, host="h")
        release.wait(30)
        return JobState("ended", "CANCELLED")

    jobs = Deaf(script)
    worker = world.worker(jobs, Limits(heartbeat_timeout=0.3), shares=1)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    assert world.tasks() == list(TASKS) and jobs.cancelled[:2] == ["not heard", "1_0"] and jobs.asked == 2
    release.set()
    worker.close()


def test_a_job_that_is_back_in_the_queue_does_not_hang(world: World) -> None:
    jobs = Jobs(good)

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        jobs.states[str(job)][0] = JobState("waiting", "PENDING", "BeginTime")  # preempted, and put back
        emit("ready", pid=1, host="h")
        time.sleep(1.5)  # three times what may pass without a sign of life
        jobs.states[str(job)][0] = JobState("running", "RUNNING")
        return good(order, emit, claims, job)

    jobs.script = script
    worker = world.worker(jobs, Limits(heartbeat_timeout=0.5), shares=1)
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
    deadline = time.monotonic() + 10
    while world.ledger.jobs("m"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert jobs.asked == 1
    worker.close()


def test_a_queue_that_is_away_is_waited_for_and_one_that_refuses_is_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    hold = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        hold.wait(30)
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
        hold.wait(30)
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
            hold.wait(30)
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
    deadline = time.monotonic() + 10
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
        hold.wait(30)
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
    assert time.monotonic() - began < 5 and set(jobs.cancelled) == {"1", "2_0", "2_1"}
    assert world.ledger.jobs("m") == []
    hold.set()


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
