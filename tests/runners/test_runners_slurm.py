"""SlurmRunner on a real Slurm: what ends how, what is tried again, and what is left when something is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.runners import build_runner
from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.jobs import QueueRefused
from tests.run.programs import Program, in_background, launch
from tests.runners.apart import Apart, after_a_kill_the_next_waits, ctrl_c_cancels
from tests.runners.conftest import Cluster, start
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


def build(**options: object) -> ClusterRunner:
    runner = build_runner({"type": "SlurmRunner", "partition": "eval", "num_cpus": 1, "memory_gb": 0.5, **options})
    assert isinstance(runner, ClusterRunner)
    return runner


def test_outcomes_and_tries(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-for-tasks")
    again = "n=out.with_suffix('.n'); n.exists() and out.touch(); n.touch(); sys.exit(not out.exists())"
    show = "print(os.environ.get('WANDB_API_KEY'), os.environ['OURS'], os.environ['SLURM_QUOTATYPE']); out.touch()"
    tasks = [
        Program(tmp_path, "good", show),
        Program(tmp_path, "second", again),
        Program(tmp_path, "bad", "print('why'); sys.exit(1)"),
        Program(tmp_path, "input", "print('wrong input'); sys.exit(2)"),
        Program(tmp_path, "killed", "os.kill(os.getpid(), 9)"),
        Program(tmp_path, "empty", "pass"),
    ]
    built = build_runner(
        {"type": "SlurmRunner", "partition": "eval", "quotatype": "spot", "max_num_workers": 6, "retry": 1},
        environment={"OURS": "x"},
    )
    outcomes = built.launch(tasks, [tmp_path / f"{number}.json" for number in range(6)])
    assert [(outcome.ok, outcome.code, outcome.tries) for outcome in outcomes] == [
        (True, 0, 1),
        (True, 0, 2),
        (False, 1, 2),
        (False, 2, 1),
        (False, -9, 2),
        (False, 0, 2),
    ]
    assert outcomes[0].lines() == ["None x spot"]
    assert outcomes[2].lines() == ["why", "why"]  # each try adds to the log
    assert outcomes[4].reason == "killed by SIGKILL (after 2 tries)" and "is not there" in outcomes[5].reason
    assert not slurm.jobs()


def test_tasks_get_gpus_of_their_own_and_wait_for_them(slurm: Cluster, tmp_path: Path) -> None:
    code = "print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1); out.touch()"
    tasks = [Program(tmp_path, f"t{number}", code, gpus=3) for number in range(4)]
    tasks.append(Program(tmp_path, "none", "print(os.environ.get('CUDA_VISIBLE_DEVICES')); out.touch()"))
    outcomes = launch(build(max_num_workers=4), tasks, tmp_path)
    given = [outcome.lines()[0] for outcome in outcomes]
    assert all(outcome.ok for outcome in outcomes)
    assert all(len(set(gpus.split(","))) == 3 for gpus in given[:4]) and given[4] in ("None", "NoDevFiles", "")
    records = [json.loads((tmp_path / f"{number}.record.json").read_text()) for number in range(4)]
    for one in records:  # 8 GPUs: never three tasks of three at a time
        assert sum(other["started"] < one["ended"] and one["started"] < other["ended"] for other in records) <= 2


def test_at_most_so_many_run_at_once(slurm: Cluster, tmp_path: Path) -> None:
    tasks = [Program(tmp_path, f"t{number}", "time.sleep(0.5); out.touch()") for number in range(5)]
    assert all(outcome.ok for outcome in launch(build(max_num_workers=2, max_queued=3), tasks, tmp_path))
    records = [json.loads((tmp_path / f"{number}.record.json").read_text()) for number in range(5)]
    jobs = [json.loads(file.read_text()) for file in tmp_path.glob("*.array.json")]
    assert sorted(len(job["tasks"]) for job in jobs)[-1] == 3 and all(job["closed"] for job in jobs)
    first = [record for record in records if record["started"] < min(one["ended"] for one in records)]
    assert len(first) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "nowhere"}, "nvalid partition"),
        ({"quotatype": "dear"}, "nvalid --quotatype"),
        ({"extra": ["--no-such-option"]}, "unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_a_wrong_configuration(
    slurm: Cluster, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(QueueRefused, match=message):
        launch(build(**options), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    assert not slurm.jobs()


def test_a_cancelled_task_is_not_tried_again(slurm: Cluster, tmp_path: Path) -> None:
    """Its script ends in order, so Slurm says CANCELLED with exit code 0:0."""
    code = "import signal; signal.signal(15, lambda *_: sys.exit(0)); out.with_suffix('.up').touch(); time.sleep(60)"
    task = Program(tmp_path, "t", code)
    runner = build(retry=3)
    thread, outcomes = in_background(lambda: launch(runner, [task], tmp_path))
    wait_for((tmp_path / "out" / "t" / "d.up").exists)
    slurm.call("scancel", slurm.jobs()[0].split("_")[0])
    thread.join(90)
    (outcome,) = outcomes
    assert (outcome.ok, outcome.tries) == (False, 1) and outcome.reason.startswith("CANCELLED")


def test_a_preempted_task_and_one_without_memory_are_tried_again(slurm: Cluster, tmp_path: Path) -> None:
    twice = "n=out.with_suffix('.n'); n.exists() and (out.touch() or sys.exit()); n.touch(); "
    thread, preempted = in_background(
        lambda: launch(build(retry=1), [Program(tmp_path / "p", "p", twice + "time.sleep(60)")], tmp_path / "p")
    )
    wait_for((tmp_path / "p" / "out" / "p" / "d.n").exists)
    slurm.call("srun", "--partition=urgent", "--exclusive", "--mem=0", "sleep", "1")
    thread.join(90)
    assert [(one.ok, one.tries) for one in preempted] == [(True, 2)]
    hungry = "b = bytearray(700 * 2**20); time.sleep(60)"
    again = in_background(
        lambda: launch(build(retry=1), [Program(tmp_path / "m", "m", twice + hungry)], tmp_path / "m")
    )
    (outcome,) = launch(build(), [Program(tmp_path / "o", "o", hungry)], tmp_path)
    assert outcome.reason.startswith("OUT_OF_MEMORY")
    again[0].join(90)
    assert [(one.ok, one.tries) for one in again[1]] == [(True, 2)]


@pytest.fixture
def own_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """For tests after which it is not what it was: a killed controller gives the same job ids again."""
    cluster = start(tmp_path / "slurm")
    monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    yield cluster
    cluster.script("stop")


def test_a_controller_that_was_killed_starts_a_job_twice_and_that_does_no_harm(
    own_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just after a start it forgets it, starts the job again, and holds it when the node says it has it."""
    monkeypatch.setattr("autoeval.runners.arrays.HELD_SECONDS", 5.0)
    count = "f=open(out.with_suffix('.n'), 'a'); f.write('x'); f.close(); time.sleep(3); out.touch()"
    thread, outcomes = in_background(lambda: launch(build(retry=2), [Program(tmp_path, "t", count)], tmp_path))
    wait_for((tmp_path / "out" / "t" / "d.n").exists)
    own_slurm.script("kill-controller")
    own_slurm.script("start-controller")
    wait_for(lambda: own_slurm.revive() or not thread.is_alive(), 90)
    assert [one.ok for one in outcomes] == [True]
    wait_for(lambda: own_slurm.revive() or not own_slurm.jobs(), 90)


def test_a_controller_that_is_away_means_nothing(
    slurm: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go = tmp_path / "go"
    code = f"out.with_suffix('.up').touch()\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\nout.touch()"
    task = Program(tmp_path, "t", code)
    thread, outcomes = in_background(lambda: launch(build(), [task], tmp_path))
    wait_for((tmp_path / "out" / "t" / "d.up").exists)
    slurm.call("scontrol", "shutdown", "slurmctld")
    wait_for(lambda: any("waiting until it does" in record.getMessage() for record in caplog.records), 90)
    go.touch()  # it ends while nobody can see it
    slurm.script("start-controller")
    thread.join(90)
    assert [(one.ok, one.tries) for one in outcomes] == [(True, 1)]


def test_a_submission_whose_answer_was_lost_is_not_repeated(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch here submits and then says what it says when the controller's answer did not come."""
    real = slurm.call("which", "sbatch")
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\necho "sbatch: error: Socket timed out" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    before = set(slurm.call("squeue", "--noheader", "--states=all", "--format=%F").split())
    (outcome,) = launch(build(), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    after = set(slurm.call("squeue", "--noheader", "--states=all", "--format=%F").split())
    assert outcome.ok and len(after - before) == 1


def test_a_held_job_is_reported_and_not_waited_for(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoeval.runners.arrays.HELD_SECONDS", 1.0)
    (outcome,) = launch(build(extra=["--hold"]), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    assert outcome.reason == "held by the queue: JobHeldUser; cancelled"
    (outcome,) = launch(build(num_cpus=500), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    assert outcome.reason == "held by the queue: PartitionConfig; cancelled"
    wait_for(lambda: not slurm.jobs())


SLURM = {"type": "SlurmRunner", "partition": "eval", "num_cpus": 1, "memory_gb": 0.5}


def test_after_a_kill_the_next_process_waits_for_the_job(slurm: Cluster, tmp_path: Path) -> None:
    first = Apart(SLURM, tmp_path)
    first.pid_of_task()
    first.kill()
    (manifest,) = (tmp_path / "c").glob("*.array.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "job": None}))  # killed just after sbatch
    after_a_kill_the_next_waits(SLURM, tmp_path)


def test_ctrl_c_cancels(slurm: Cluster, tmp_path: Path) -> None:
    ctrl_c_cancels(Apart(SLURM, tmp_path), signal.SIGINT)
    assert not slurm.jobs()


def test_a_site_without_quotatype_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = start(tmp_path / "plain", "plain")
    try:
        monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
        with pytest.raises(QueueRefused, match="quotatype"):
            launch(build(quotatype="auto"), [Program(tmp_path, "t", "out.touch()")], tmp_path)
        assert launch(build(), [Program(tmp_path, "t", "out.touch()")], tmp_path)[0].ok
    finally:
        cluster.script("stop")
