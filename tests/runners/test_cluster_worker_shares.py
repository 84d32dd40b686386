"""What the daemon's worker on a cluster makes of tasks in shares: one task to whom it tells, whatever dies."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoeval.runners.jobs import JobState
from autoeval.tasks.claims import Claims
from autoeval.tasks.events import EventFile
from autoeval.tasks.order import Order
from autoeval.tasks.shares import Cut, ShareFiles
from tests.runners.scripted_jobs import END, REF, TASKS, Jobs, Limits, World, sharing, world_in

CUT = Cut("b", (4.0, 2.0, 1.0, 1.0))
KILLED = JobState("ended", "NODE_FAIL", again=True)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world_in(tmp_path, monkeypatch) as made:
        yield made


def in_jobs(world: World, kind: str) -> Counter[str]:
    """What jobs have told of shares, in all of their event files."""
    files = Path(world.plan.directory).glob("jobs/*/*.events.jsonl")
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return Counter(event["share"] for event in events if event["event"] == kind)


def outside(world: World) -> Counter[tuple[Any, ...]]:
    return Counter((event["event"], event["task"]) for event in world.told if "task" in event)


def test_a_part_that_dies_in_a_share_costs_that_share_alone(world: World) -> None:
    deadly = {CUT.names[2]}

    def once(step: str) -> JobState | None:
        if step not in deadly:
            return None
        deadly.remove(step)
        return KILLED

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        return sharing(order, emit, claims, job, once)

    worker = world.worker(jobs := Jobs(script), cut=CUT)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    worker.close()
    assert world.tasks() == list(TASKS) and jobs.asked == 2 and not world.tasks("task_failed")
    assert in_jobs(world, "share_done") == Counter(CUT.names)
    assert in_jobs(world, "share_started") == Counter([*CUT.names, CUT.names[2], "b (all shares)"])
    assert outside(world)["task_started", "b"] == 1 and outside(world)["task_done", "b"] == 1


def test_a_slow_part_is_relieved_of_shares_that_it_has_not_begun(world: World) -> None:
    """It has three of four, and is still at the first when the other has done all else."""
    begun, others = threading.Event(), threading.Event()
    by: dict[str, str] = {}

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        def before(step: str) -> JobState | None:
            by[step] = order.owner
            if step == CUT.names[0]:
                begun.set()
                others.wait(120)
            return None

        if not slow(order):
            begun.wait(120)
        end = sharing(replace(order, mine=CUT.names[:3] if slow(order) else order.mine[:1]), emit, claims, job, before)
        if not slow(order):
            others.set()
        return end

    def slow(order: Order) -> bool:
        return CUT.names[0] in order.mine

    worker = world.worker(jobs := Jobs(script), cut=CUT)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    worker.close()
    assert world.tasks() == list(TASKS) and jobs.asked == 1 and others.is_set()
    assert by[CUT.names[0]] == by["b"] != by[CUT.names[1]] == by[CUT.names[2]] == by[CUT.names[3]]


@pytest.mark.parametrize("every", [False, True])
def test_a_task_with_a_share_that_kills_fails_and_the_rest_of_it_is_not_begun(world: World, every: bool) -> None:
    """``every``: all shares of it kill; then not all of them are tried, and each of two slots has its two tries."""

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        deadly = CUT.names if every else CUT.names[:1]
        return sharing(order, emit, claims, job, lambda step: KILLED if step in deadly else None)

    worker = world.worker(jobs := Jobs(script), Limits(attempts=2), cut=CUT)
    worker.submit(world.plan_path)
    assert world.until(*END)["event"] == "checkpoint_done"
    worker.close()
    assert world.tasks() == ["a", "c"] and world.tasks("task_failed") == ["b"]
    failed = next(event for event in world.told if event["event"] == "task_failed")
    assert "NODE_FAIL during 'b (share " in failed["error"] and "times; log: " in failed["error"]
    if every:
        assert sum(in_jobs(world, "share_started").values()) <= 2 * 2 + 1 and jobs.asked <= 5
    else:
        assert in_jobs(world, "share_started")[CUT.names[0]] == 2 and "(2 times" in failed["error"]


@pytest.mark.parametrize("left", [True, False])
def test_shares_outlive_the_daemon(world: World, left: bool) -> None:
    """``left``: so do its jobs; otherwise they have ended, and the rest of the shares is dealt out again."""
    hold = threading.Event()

    def script(order: Order, emit: EventFile, claims: Claims, job: int) -> JobState:
        def before(step: str) -> JobState | None:
            if job == 1 and step == CUT.names[3]:
                hold.wait(120)
                return None if left else JobState("ended", "CANCELLED")
            return None

        return sharing(order, emit, claims, job, before)

    jobs = Jobs(script)
    first = world.worker(jobs, cut=CUT, shares=1)
    first.submit(world.plan_path)
    while in_jobs(world, "share_started")[CUT.names[3]] == 0:
        threading.Event().wait(0.01)
    assert world.until("task_started")["task"] == "a"
    first.close(leave=left)
    assert ShareFiles(world.plan, "b", "v1").left(CUT) == [CUT.names[3]]
    world.told.clear()
    second = world.worker(jobs, cut=CUT, shares=1)
    second.settle([REF.fingerprint])
    second.submit(world.plan_path)
    hold.set()
    assert world.until(*END)["event"] == "checkpoint_done"
    second.close()
    assert sorted(set(world.tasks())) == list(TASKS) and jobs.asked == (1 if left else 2)
    assert in_jobs(world, "share_done") == Counter(CUT.names)
