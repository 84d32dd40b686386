"""This machine as a queue: slots, limits, ends, and what a later process finds, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoeval.runners import processes
from autoeval.runners.jobs import JobArray, JobState, QueueRefused
from autoeval.runners.processes import from_json, identify
from autoeval.runners.slots import Capacity, Slots, Wanted
from tests.run.programs import alive
from tests.runners.local_queue_world import GATED, STUBBORN, World, over
from tests.waiting import wait_for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def test_ends_records_and_logs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-for-tasks")
    code = """
        print(os.environ.get("WANDB_API_KEY"), os.environ["OURS"], os.getcwd(), flush=True)
        {"0": lambda: None, "1": lambda: sys.exit(3), "2": lambda: os.kill(os.getpid(), 9)}[number]()
    """
    queue = world.queue()
    array = world.array("k", code, size=3)
    array = JobArray(**{**vars(array), "environment": {"OURS": "a secret"}})
    job = queue.submit(array)
    assert over(queue, {job: 3}) == {"k": ["COMPLETED", "FAILED", "FAILED"]}
    assert queue.poll({job: 3})["k"][1] == JobState("ended", "FAILED", again=True)
    assert [world.kept("k", number)["code"] for number in range(3)] == [0, 3, -9]
    assert array.task_log(1).read_text() == f"None a secret {Path.cwd()}\n"
    assert queue.find("k") == "k" and queue.find("other") is None
    assert queue.poll({"other": 2}) == {"other": [JobState("gone", again=True)] * 2}
    assert queue.submit(array) == "k"  # it is there: not once more
    assert not any("a secret" in file.read_text() for file in world.directory.rglob("*") if file.is_file())
    assert not world.supervisor("k").alive


def test_no_gpu_is_given_twice_and_two_arrays_share_them(world: World) -> None:
    """Each claims its GPUs by making directories, which only one can."""
    code = """
        mine = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        for gpu in mine:
            (here / f"has-{gpu}").mkdir()
        with (here / "given").open("a") as given:
            given.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
        time.sleep(0.1)
        for gpu in mine:
            (here / f"has-{gpu}").rmdir()
    """
    first, second = world.queue(gpus=("3", "GPU-a", "7")), world.queue(gpus=("3", "GPU-a", "7"))
    first.submit(world.array("a", code, size=6, num_gpus=1))
    second.submit(world.array("b", code, size=4, num_gpus=2))
    assert over(first, {"a": 6, "b": 4})["a"] == ["COMPLETED"] * 6
    assert over(second, {"b": 4})["b"] == ["COMPLETED"] * 4
    given = (world.here / "given").read_text().split()
    assert len(given) == 10 and {gpu for line in given for gpu in line.split(",")} == {"3", "GPU-a", "7"}
    with pytest.raises(QueueRefused, match="c wants 4 GPUs; there are 3"):
        first.submit(world.array("c", code, num_gpus=4))
    with pytest.raises(QueueRefused, match="wants 9 CPU slots; there are 4"):
        first.submit(world.array("c", code, num_cpus=9))
    with pytest.raises(QueueRefused, match=r"wants 1e\+06 GB of memory"):
        first.submit(world.array("c", code, memory_gb=1e6))


def test_a_gpu_may_be_for_several_and_without_gpus_none_is_waited_for(world: World) -> None:
    code = "(here / number).write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))\n"
    both = code + "while len(list(here.glob('[0-9]'))) < 4: time.sleep(0.01)"
    queue = world.queue(gpus=("0", "1"), max_workers_per_gpu=2)
    queue.submit(world.array("k", both, size=4, num_gpus=1))
    over(queue, {"k": 4})
    assert sorted(world.read(str(number)) for number in range(4)) == ["0", "0", "1", "1"]
    without = world.queue()
    without.submit(
        world.array("l", "(here / 'l').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))", num_gpus=8)
    )
    assert over(without, {"l": 1}) == {"l": ["COMPLETED"]}
    assert world.read("l") == os.environ.get("CUDA_VISIBLE_DEVICES", "none")


@pytest.mark.parametrize(
    ("options", "resources", "most"),
    [
        ({"at_once": 2}, {}, 2),
        ({}, {"num_cpus": 2}, 2),  # of four slots
        ({}, {"memory_gb": 3.0}, 1),  # of five
    ],
)
def test_so_many_at_once(world: World, options: dict[str, int], resources: dict[str, Any], most: int) -> None:
    code = "p = here / f'on-{number}'; p.touch(); (here / f'saw-{number}').write_text(str(len(list(here.glob('on-*'))))); time.sleep(0.1); p.unlink()"
    queue = world.queue(memory_gb=5.0)
    queue.submit(world.array("k", code, size=4, **options, **resources))
    assert over(queue, {"k": 4}) == {"k": ["COMPLETED"] * 4}
    assert max(int(world.read(f"saw-{number}")) for number in range(4)) <= most


def test_a_time_limit_ends_all_that_a_task_has_started(world: World) -> None:
    queue = world.queue()
    queue.submit(world.array("k", STUBBORN + "    time.sleep(600)", minutes=1 / 60))
    assert over(queue, {"k": 1}) == {"k": ["TIMEOUT"]}
    assert queue.poll({"k": 1})["k"][0].again
    assert not any(map(alive, map(int, world.read("pids").split())))
    kept = world.kept("k")
    assert kept["code"] == -9 and 1.0 <= kept["ended"] - kept["started"] < 60.0  # not the 600 that it wants


def test_what_a_task_leaves_behind_ends_with_it(world: World) -> None:
    queue = world.queue()
    queue.submit(world.array("k", STUBBORN))
    assert over(queue, {"k": 1}) == {"k": ["COMPLETED"]}
    assert not any(map(alive, map(int, world.read("pids").split())))


def test_cancelled_is_what_was_cancelled_also_with_exit_code_0(world: World) -> None:
    code = "signal.signal(15, lambda *_: sys.exit(0)); (here / f'up-{number}').write_text(str(os.getpid())); time.sleep(600)"
    queue = world.queue()
    queue.submit(world.array("iter_0002000", code, size=3, at_once=2))
    world.up("iter_0002000", 0, 1)
    assert [state.kind for state in queue.poll({"iter_0002000": 3})["iter_0002000"]] == [
        "running",
        "running",
        "waiting",
    ]
    queue.cancel(["iter_0002000_1"])
    world.up("iter_0002000", 2)  # its place is free
    states = queue.poll({"iter_0002000": 3})["iter_0002000"]
    assert [state.kind for state in states] == ["running", "ended", "running"]
    assert states[1] == JobState("ended", "CANCELLED", again=False)
    queue.cancel(["iter_0002000", "never"])
    assert over(queue, {"iter_0002000": 3}) == {"iter_0002000": ["CANCELLED"] * 3}
    assert world.kept("iter_0002000")["code"] == 0


def test_who_waits_for_a_gpu_can_be_cancelled_and_says_what_it_waits_for(world: World) -> None:
    queue = world.queue(gpus=("0",))
    queue.submit(world.array("first", "(here / 'up').write_text('x'); time.sleep(600)", num_gpus=1))
    world.read("up")
    queue.submit(world.array("second", "(here / 'second').touch()", num_gpus=1))
    queue.submit(world.array("third", "(here / 'third').touch()", num_gpus=1))

    def reasons() -> list[str]:
        return [queue.poll({job: 1})[job][0].reason for job in ("second", "third")]

    wait_for(
        lambda: (
            sorted(reasons())
            == [
                "waits for 1 GPU: 1 have all that is left",
                "waits for 1 GPU: others asked before",
            ]
        )
    )
    queue.cancel(["second", "third"])
    assert over(queue, {"second": 1, "third": 1}) == {"second": ["CANCELLED"], "third": ["CANCELLED"]}
    assert not (world.here / "second").exists() and queue.poll({"first": 1})["first"][0].kind == "running"
    queue.cancel(["first"])


def test_where_nothing_can_be_written_tasks_are_ended_all_the_same(world: World) -> None:
    """Somebody has removed the directory."""
    world.queue().submit(world.array("k", GATED, size=3, at_once=2))
    pids = world.up("k", 0, 1)
    supervisor = world.supervisor("k")
    world.directory.rename(world.here / "away")
    world.directory.write_text("")  # nor can it be made again
    supervisor.signal(signal.SIGTERM)
    wait_for(lambda: not supervisor.alive)
    assert not any(map(alive, pids)) and not (world.here / "up-2").exists()
    world.directory.unlink()


def test_what_ended_long_ago_is_forgotten(world: World) -> None:
    queue = world.queue()
    queue.submit(world.array("old", "pass"))
    queue.submit(world.array("runs", GATED))
    over(queue, {"old": 1})
    for file in world.directory.glob("*/*"):
        if file.parent.name != "slots":
            os.utime(file, (0, 0))
    queue.submit(world.array("new", "pass"))
    assert queue.find("old") is None and queue.find("runs") == "runs" and queue.find("new") == "new"


def test_slots_are_held_as_long_as_any_of_their_processes_lives(tmp_path: Path) -> None:
    slots = Slots(tmp_path, Capacity(("0", "1"), 1, 4, 8.0))
    sleeper = subprocess.Popen(["sleep", "600"])
    task = identify(sleeper.pid)
    assert task is not None
    with slots.taken(Wanted(gpus=1), print) as first:
        assert first.gpus == ("0",)
        first.held_for(task)
        with slots.taken(Wanted(gpus=1), print) as second:
            assert second.gpus == ("1",)
        (holder,) = slots.holders()
        content = json.loads(holder.file.read_text())
        content["processes"][0]["started"] = 1  # the keeper is dead, its task is not
        holder.file.write_text(json.dumps(content))
        assert [one.gpus for one in slots.holders()] == [("0",)]
        sleeper.kill()
        sleeper.wait()
        assert slots.holders() == []


def test_without_proc_processes_are_told_apart_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path / "none")  # as on a Mac
    sleeper = subprocess.Popen(["sleep", "600"])
    found = identify(sleeper.pid)
    assert found is not None and found.alive and found != identify(os.getpid())
    assert not replace(found, started=found.started + 1).alive
    assert found.signal(signal.SIGTERM)
    wait_for(lambda: identify(sleeper.pid) is None)  # a zombie
    sleeper.wait()
    assert not found.alive and not found.signal(signal.SIGTERM)


def test_waiting_costs_no_time(world: World) -> None:
    """A supervisor, a keeper whose task runs and one that waits for its GPU do nothing at all."""
    queue = world.queue(gpus=("0",))
    queue.submit(world.array("k", "(here / f'up-{number}').write_text('x'); time.sleep(600)", size=2, num_gpus=1))
    wait_for(
        lambda: (
            sorted(
                world.kept("k", number)["name"] if (world.directory / "k" / f"{number}.json").exists() else ""
                for number in range(2)
            )
            == ["RUNNING", "WAITING"]
        )
    )
    processes = [world.supervisor("k"), *(from_json(world.kept("k", number)["keeper"]) for number in range(2))]
    wait_for(lambda: "reason" in world.kept("k", 0) or "reason" in world.kept("k", 1))

    def switches() -> list[int]:
        texts = [Path(f"/proc/{one.pid}/status").read_text() for one in processes]
        return [sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line) for text in texts]

    def quiet(seconds: float) -> bool:
        before = switches()
        time.sleep(seconds)
        return switches() == before

    wait_for(lambda: quiet(0.3))  # what they wrote last may still be on its way to the disk
    assert quiet(1.0)
