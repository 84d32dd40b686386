"""Jobs of a cluster that are functions: they write the same files as ``autoeval.tasks.job``."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from autoeval.convert.receipt import Receipt, write_receipt
from autoeval.runners import cluster_worker
from autoeval.runners.cluster_worker import ClusterWorker
from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused
from autoeval.runners.places import Place
from autoeval.tasks.claims import Claims
from autoeval.tasks.events import EventFile
from autoeval.tasks.order import Order, load_order
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan, save_plan
from autoeval.tasks.shares import Cut, Dealt, ShareFiles
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


def finish(order: Order, emit: EventFile, task: str, share: str = "") -> None:
    version = dict(order.plan.expected)[task]
    if share:
        emit("share_started", task=task, version=version, share=share, log="l")
    else:
        emit("task_started", task=task, version=version, log="l")
    write_result(
        order.plan.result_path(task),
        TaskResult(
            order.plan.checkpoint, task, version, "icl", (Score("acc", 0.5, 0.1, 4),), (), {"wall_seconds": 1.0}, 1.0
        ),
    )
    emit("task_done", task=task, version=version, result=str(order.plan.result_path(task)))


def sharing(
    order: Order, emit: EventFile, claims: Claims, _job: int, before: Callable[[str], JobState | None] = lambda _: None
) -> JobState:
    """What a part does, as ``Evaluator.evaluate_part``; ``before`` is asked when a step was claimed, and may be its end."""
    emit("ready", pid=1, host="h")
    emit("loaded", seconds=2.0)
    versions = dict(order.plan.expected)
    shares = {name: (cut, number) for cut in order.cuts for number, name in enumerate(cut.names)}
    for step in [*order.mine, *order.turns, *(cut.task for cut in order.cuts)]:
        task = shares[step][0].task if step in shares else step
        files = ShareFiles(order.plan, task, versions[task])
        cut = next((one for one in order.cuts if one.task == task), None)
        if order.plan.result_path(task).exists() or (cut and step == task and files.left(cut)):
            continue
        if (step in shares and files.path(shares[step][1]).exists()) or not claims.take(step):
            continue
        if step in shares:
            emit("share_started", task=task, version="v1", share=step, log="l")
        if (end := before(step)) is not None:
            return end
        if step in shares:
            write_json(files.path(shares[step][1]), {})
            emit("share_done", task=task, share=step)
        else:
            finish(order, emit, task, f"{task} (all shares)" if cut else "")
    emit("checkpoint_done")
    return DONE


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

    def worker(
        self, jobs: Jobs, limits: Limits | None = None, shares: int = 2, cut: Cut | None = None, **options: Any
    ) -> ClusterWorker:
        """``shares``: how many parts there are. The task of ``cut`` is dealt out in shares."""

        def deal(_plan: EvaluationPlan, names: Any) -> Dealt:
            if cut is not None and cut.task in names:
                steps = [*(name for name in names if name != cut.task), *cut.names]
                return Dealt(tuple(tuple(steps[number::shares]) for number in range(shares)), (cut,), tuple(steps))
            return Dealt(tuple(part for number in range(shares) if (part := tuple(names[number::shares]))))

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

    def until(self, *kinds: str, seconds: float = 90.0) -> dict[str, Any]:
        """The first event of these kinds; those before it are ``told`` too."""
        deadline = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            self.told.append(event)
            if event["event"] in kinds:
                return event

    def until_no_job_is_left(self, seconds: float = 90.0) -> None:
        """All have said their last word: a worker that is closed now has none to cancel."""
        deadline = time.monotonic() + seconds
        while self.ledger.jobs("m"):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def tasks(self, kind: str = "task_done") -> list[str]:
        return sorted(event["task"] for event in self.told if event["event"] == kind)


END = ("checkpoint_done", "checkpoint_failed", "checkpoint_missed", "broken")


@contextmanager
def world_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One in which everybody asks often."""
    monkeypatch.setattr(cluster_worker, "READ_SECONDS", 0.02)
    monkeypatch.setattr(cluster_worker, "GREATEST_WAIT", 0.05)
    monkeypatch.setattr(cluster_worker, "LEAST_WAIT", 0.02)
    monkeypatch.setattr("autoeval.runners.places.GREATEST_PAUSE", 0.1)
    made = World(directory)
    yield made
    made.ledger.close()
