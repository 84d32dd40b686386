"""What another process finds of this machine's jobs when who submitted or supervised them was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from autoeval.runners import local_queue
from autoeval.runners.jobs import JobArray, JobState, QueueError, Resources
from autoeval.runners.local_queue import LocalQueue
from autoeval.runners.processes import from_json
from tests.run.programs import alive
from tests.runners.conftest import REPOSITORY
from tests.runners.local_queue_world import GATED, STUBBORN, World, over
from tests.waiting import wait_for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


SUBMIT = """
import sys; sys.path.insert(0, {repository!r})
from pathlib import Path
from autoeval.runners.jobs import JobArray, Resources
from autoeval.runners.local_queue import LocalQueue
queue = LocalQueue(Path({directory!r}), gpus=(), cpus=4, grace_seconds=0.5, tethered={tethered})
queue.submit(JobArray("k", "k", {command!r}, 3, Resources(), Path({log!r}), 2))
print("submitted", flush=True)
while True:
    queue.poll({{"k": 3}})
    queue.wait(60)
"""


def submit_and_die(world: World, code: str, *, tethered: bool = False, before: Callable[[], object] = int) -> None:
    array = world.array("k", code, size=3)
    text = SUBMIT.format(
        repository=str(REPOSITORY),
        directory=str(world.directory),
        command=list(array.command),
        log=str(array.log),
        tethered=tethered,
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "submitted\n"
    before()
    process.kill()
    process.wait()
    process.stdout.close()


def test_jobs_live_on_when_who_submitted_them_is_killed(world: World) -> None:
    submit_and_die(world, GATED, before=lambda: world.up("k", 0, 1))
    queue = world.queue()
    assert queue.find("k") == "k"
    assert [state.kind for state in queue.poll({"k": 3})["k"]] == ["running", "running", "waiting"]
    (world.here / "go").touch()
    assert over(queue, {"k": 3}) == {"k": ["COMPLETED"] * 3}  # the third is started though nobody is there to see it
    assert int(world.read("up-2")) and world.kept("k", 2)["code"] == 0


def test_tethered_jobs_end_with_who_submitted_them(world: World) -> None:
    submit_and_die(world, GATED, tethered=True, before=lambda: world.up("k", 0, 1))
    queue = world.queue()
    assert over(queue, {"k": 3}) == {"k": ["CANCELLED"] * 3}
    assert not alive(int(world.read("up-0"))) and not (world.here / "up-2").exists()
    # It was nobody's will: a daemon that was killed takes them up again, and must not find them failed.
    assert all(state.again for state in queue.poll({"k": 3})["k"])


def test_a_tethered_job_that_somebody_cancels_is_not_to_be_tried_again(world: World) -> None:
    queue = world.queue(tethered=True)
    queue.submit(world.array("k", GATED, size=2, at_once=1))
    world.read("up-0")
    queue.cancel(["k"])
    assert over(queue, {"k": 2}) == {"k": ["CANCELLED"] * 2}
    assert not any(state.again for state in queue.poll({"k": 2})["k"])


def test_a_number_that_another_process_has_now_is_not_the_job(world: World) -> None:
    submit_and_die(world, GATED, before=lambda: world.up("k", 0, 1))
    files = [world.directory / "k" / name for name in ("supervisor.json", "0.json", "1.json")]
    kept = [file.read_text() for file in files]
    queue = world.queue()
    for changed in ({"started": 1}, {"boot": "another"}):  # it began at another moment; the machine was started again
        for file, text in zip(files, kept, strict=True):
            content = json.loads(text)
            for process in (content.get("keeper", content), content.get("task")):
                if process is not None:
                    process.update(changed)
            file.write_text(json.dumps(content))
        job = json.loads((world.directory / "k" / "job.json").read_text())
        assert queue.poll({"k": 3})["k"] == [
            *[JobState("gone", reason="what kept it was killed", again=True)] * 2,
            JobState("gone", again=True),
        ]
        queue.cancel(["k"])  # hits nobody
        for number in range(3):
            (world.directory / "k" / f"{number}.cancel").unlink()
    assert alive(int(world.read("up-0")))
    (world.directory / "k" / "job.json").write_text(json.dumps({**job, "host": "elsewhere"}))
    assert queue.poll({"k": 1})["k"] == [JobState("gone", reason="it was started on elsewhere, not here", again=True)]
    (world.directory / "k" / "job.json").write_text(json.dumps(job))
    for file, text in zip(files, kept, strict=True):
        file.write_text(text)
    assert [state.kind for state in queue.poll({"k": 3})["k"]] == ["running", "running", "waiting"]


def test_without_its_supervisor_what_runs_goes_on_and_what_waited_is_gone(world: World) -> None:
    queue = world.queue()
    queue.submit(world.array("k", GATED, size=3, at_once=2))
    world.up("k", 0, 1)
    world.supervisor("k").signal(signal.SIGKILL)
    wait_for(lambda: not world.supervisor("k").alive)
    assert [state.kind for state in queue.poll({"k": 3})["k"]] == ["running", "running", "gone"]
    (world.here / "go").touch()
    assert over(queue, {"k": 3}) == {"k": ["COMPLETED", "COMPLETED", "gone"]}


def test_a_killed_keeper_leaves_nothing_behind(world: World) -> None:
    """Neither with a supervisor to see it, nor without: there the next question ends it."""
    queue = world.queue(gpus=("0",))
    code = STUBBORN.replace('"pids"', "f'pids-{os.environ[\"OF\"]}'") + "    time.sleep(600)"
    for key, with_supervisor in (("seen", True), ("unseen", False)):
        array = JobArray(**{**vars(world.array(key, code, num_gpus=1)), "environment": {"OF": key}})
        queue.submit(array)
        main, *others = map(int, world.read(f"pids-{key}").split())
        wait_for(lambda key=key: world.kept(key)["name"] == "RUNNING")  # type: ignore[misc]
        if not with_supervisor:
            world.supervisor(key).signal(signal.SIGKILL)
            wait_for(lambda key=key: not world.supervisor(key).alive)  # type: ignore[misc]
        from_json(world.kept(key)["keeper"]).signal(signal.SIGKILL)
        if with_supervisor:
            assert over(queue, {key: 1}) == {key: ["LOST"]}
            assert queue.poll({key: 1})[key][0].reason == "its keeper ended with -9"
            assert not any(map(alive, [main, *others]))
        else:
            assert over(queue, {key: 1}) == {key: ["gone"]}
            wait_for(lambda main=main: not alive(main))  # type: ignore[misc]
            for pid in others:  # in sessions of their own, with nobody left who knows of them
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
    queue.submit(world.array("next", "(here / 'next').touch()", num_gpus=1))
    assert over(queue, {"next": 1}) == {"next": ["COMPLETED"]}  # the GPU is free


def test_a_submission_that_was_cut_short_is_gone_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between writing the job down and starting its supervisor."""
    queue = world.queue()
    with monkeypatch.context() as patch:
        patch.setattr(LocalQueue, "_supervise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            queue.submit(world.array("k", GATED))
    assert queue.find("k") == "k" and queue.poll({"k": 1})["k"] == [JobState("waiting", "PENDING")]
    file = world.directory / "k" / "job.json"
    job = json.loads(file.read_text())
    file.write_text(json.dumps({**job, "submitted": job["submitted"] - 31}))
    assert queue.poll({"k": 1})["k"] == [JobState("gone", again=True)]
    late = subprocess.run(
        [sys.executable, "-m", "autoeval.runners.local_supervisor", str(file.parent)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert late.returncode == 1 and "not started" in late.stderr  # it would run what was given up


def test_a_supervisor_that_does_not_start_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = world.queue()
    with monkeypatch.context() as patch:
        patch.setattr(local_queue, "sys", type("Sys", (), {"executable": "/bin/false"}))
        with pytest.raises(QueueError, match="supervisor of k did not start"):
            queue.submit(world.array("k", GATED))
    assert queue.find("k") is None
    with pytest.raises(ValueError, match="expected letters"):
        queue.submit(world.array("../k", GATED))
    queue.submit(world.array("none", GATED))
    array = JobArray("l", "l", ["/no/such/program"], 1, Resources(), world.here / "l.log")
    queue.submit(array)
    assert over(queue, {"l": 1}) == {"l": ["FAILED"]}
    assert "FileNotFoundError" in queue.poll({"l": 1})["l"][0].reason
