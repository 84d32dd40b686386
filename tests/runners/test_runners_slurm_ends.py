"""How jobs end on a real Slurm when it is not by themselves, and what is decided then; and SlurmRunner inside a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.conftest import World, make_world
from tests.run.programs import Program, in_background, launch
from tests.runners.conftest import REPOSITORY, Cluster
from tests.runners.test_runners_slurm import build
from tests.tiny_models import save_tiny_model
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
# Waits the first time; is done at once the second time.
TWICE = "n=out.with_suffix('.n'); n.exists() and (out.touch() or sys.exit()); n.touch(); time.sleep(600)"


def started(directory: Path, name: str) -> bool:
    return (directory / "out" / name / "d.n").exists()


def job_of(slurm: Cluster, name: str) -> str:
    return slurm.call("squeue", "--noheader", "--states=all", f"--name=Program[{name}/d]", "--format=%F").split()[0]


def test_who_has_no_time_left_is_tried_again_and_who_is_requeued_or_released_goes_on(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at the same time: Slurm looks at time limits every 30 s only."""
    where = {name: tmp_path / name for name in ("again", "once", "requeued", "released", "kept")}
    runners = {
        "again": build(retry=1, minutes=1),
        "once": build(minutes=1),
        "requeued": build(),
        "released": build(extra=["--hold"]),
        "kept": build(retry=1),
    }
    running = {
        name: in_background(lambda name=name: launch(runners[name], [Program(where[name], name, TWICE)], where[name]))  # type: ignore[misc]
        for name in ("again", "once", "requeued", "released")
    }
    for name in ("again", "once", "requeued"):
        wait_for(lambda name=name: started(where[name], name))  # type: ignore[misc]
    for name in ("again", "once"):
        slurm.call("scontrol", "update", f"JobId={job_of(slurm, name)}", "EndTime=now")
    slurm.call("scontrol", "requeue", f"{job_of(slurm, 'requeued')}_0")
    assert [line.split()[1] for line in slurm.jobs() if line.startswith(job_of(slurm, "released"))] == ["PENDING"]
    (where["released"] / "out" / "released").mkdir(parents=True)
    (where["released"] / "out" / "released" / "d.n").touch()
    slurm.call("scontrol", "release", job_of(slurm, "released"))
    for name in ("released", "requeued"):
        running[name][0].join(90)
        assert [(one.ok, one.tries) for one in running[name][1]] == [(True, 1)], name

    monkeypatch.setattr("autoeval.runners.arrays.HELD_SECONDS", 1.0)
    kept = in_background(lambda: launch(runners["kept"], [Program(where["kept"], "kept", TWICE)], where["kept"]))
    wait_for(lambda: started(where["kept"], "kept"))
    slurm.call("scontrol", "requeuehold", f"{job_of(slurm, 'kept')}_0")
    kept[0].join(90)
    (outcome,) = kept[1]  # held by somebody's will: not tried again
    assert (outcome.ok, outcome.tries) == (False, 1) and outcome.reason.startswith("held by the queue: ")

    for name in ("again", "once"):
        running[name][0].join(90)
    assert [(one.ok, one.tries) for one in running["again"][1]] == [(True, 2)]
    (outcome,) = running["once"][1]
    assert (outcome.ok, outcome.tries, outcome.reason) == (False, 1, "TIMEOUT (TimeLimit)")


def test_a_lost_node_costs_a_try_only_where_slurm_may_not_requeue(slurm: Cluster, tmp_path: Path) -> None:
    runners = {
        "again": build(extra=["--no-requeue"], retry=1),
        "once": build(extra=["--no-requeue"]),
        "requeued": build(),
    }
    running = {
        name: in_background(lambda name=name: launch(runners[name], [Program(tmp_path, name, TWICE)], tmp_path / name))  # type: ignore[misc]
        for name in runners
    }
    wait_for(lambda: all(started(tmp_path, name) for name in runners))
    slurm.call("scontrol", "update", "NodeName=ci0", "State=DOWN", "Reason=test")
    slurm.revive()
    for thread, _ in running.values():
        thread.join(90)
    ends = {
        name: [(one.ok, one.tries, one.why.split(" ")[0]) for one in outcomes]
        for name, (_, outcomes) in running.items()
    }
    assert ends == {
        "again": [(True, 2, "")],
        "once": [(False, 1, "NODE_FAIL")],
        "requeued": [(True, 1, "")],  # Slurm itself has started it again
    }


INSIDE = """
import os, pathlib, sys
sys.path.insert(0, {repository!r})
from autoeval.runners import build_runner
from tests.run.programs import Program
here = pathlib.Path({directory!r})
code = "print('task in', os.environ['SLURM_JOB_ID'], os.environ['SLURM_JOB_PARTITION'], os.environ['SLURM_QUOTATYPE'], flush=True); out.touch()"
print("we in", os.environ["SLURM_JOB_ID"], flush=True)
for debug in (False, True):
    options = dict(type="SlurmRunner", partition="debug", quotatype="spot", num_cpus=1, memory_gb=0.5)
    (outcome,) = build_runner(options, debug=debug).launch([Program(here, f"t{{debug}}", code)], [here / f"{{debug}}.json"])
    assert outcome.ok, outcome
    print(*outcome.lines(), flush=True)
"""


def test_inside_a_job_tasks_are_jobs_of_their_own(slurm: Cluster, tmp_path: Path) -> None:
    """srun inside srun would else wait for ever for the place that this very process has."""
    code = INSIDE.format(repository=str(REPOSITORY), directory=str(tmp_path))
    said = slurm.call("srun", "--partition=eval", "--quotatype=reserved", sys.executable, "-c", code).splitlines()
    (ours,) = [line.split()[2] for line in said if line.startswith("we in")]
    tasks = [line.split()[2:] for line in said if line.startswith("task in")]
    assert [task[1:] for task in tasks] == [["debug", "spot"]] * 2
    assert len({ours, *(task[0] for task in tasks)}) == 3


def test_run_py_inside_srun(slurm: Cluster, tmp_path: Path) -> None:
    """As a user of OpenCompass types it, the whole way to the table."""
    world: World = make_world(tmp_path)
    save_tiny_model(tmp_path / "gpt2", "gpt2", window=256)
    arguments = ["--config-dir", "config", "--hf-type", "base", "--hf-path", "gpt2", "--hf-num-gpus", "1"]
    arguments += ["--datasets", "small", "--slurm", "-p", "debug", "-q", "auto", "--retry", "0"]
    done = subprocess.run(
        ["srun", "--partition=eval", "--mem=1500M", *world.command(*arguments)],
        cwd=tmp_path,
        env=world.environment(SBATCH_MEM_PER_NODE="2000M"),  # what a user wishes of sbatch is his
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("small ")]
    assert "±" in row
    (spent,) = tmp_path.glob("outputs/default/*/logs/infer/gpt2_hf/small.seconds.json")
    assert json.loads(spent.read_text())["items"] == 20  # by which the next run's tasks are dealt out
    told = slurm.call("squeue", "--noheader", "--states=all", "--format=%j|%P|%T|%b", "--sort=i").splitlines()
    assert "OpenICLInfer[gpt2_hf/small]|debug|COMPLETED|gres:gpu:1" in told
    assert "OpenICLEval[gpt2_hf/small]|debug|COMPLETED|N/A" in told
