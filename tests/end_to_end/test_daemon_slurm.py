"""The daemon on a real Slurm: as many jobs as slots, conversion on a runner of its own, and nothing twice after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from autoeval.ending import STOP_SECONDS
from tests.end_to_end.conftest import MEGATRON_CONFIG
from tests.end_to_end.daemon_world import (
    CONFIG,
    deliver,
    log_lines,
    logged,
    make_project,
    run,
    scores,
    started,
    states,
)
from tests.end_to_end.shares_world import all_shares, make_long, told_of_shares
from tests.pace import Pace
from tests.runners.conftest import Cluster, start
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SLURM = "{type: slurm, partition: eval, num_gpus: 1, num_cpus: 1, memory_gb: 1, max_num_workers: 2}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of this file's own: its controller is stopped."""
    made = start(tmp_path_factory.mktemp("slurm"))
    yield made
    made.script("stop")


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    cluster.call("scancel", "--user=root")  # a job that was relieved of its last share may still import its libraries
    wait_for(lambda: not cluster.jobs())
    return cluster


def jobs(project: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(project / "out" / "ledger.sqlite")) as connection:
        return connection.execute(
            "SELECT iteration, stage, runner, job, size, state FROM jobs ORDER BY noted_at"
        ).fetchall()


def began(project: Path) -> bool:
    return any("ready" in file.read_text() for file in project.glob("out/*/iter_*/jobs/*/*.events.jsonl"))


def test_killed_in_the_middle_and_the_controller_away_every_job_runs_once(
    slurm: Cluster, models: Path, tmp_path: Path
) -> None:
    here = make_project(tmp_path / "here")
    project = make_project(tmp_path / "cluster", CONFIG + f"  runner: {SLURM}\n")
    for one in (here, project):
        make_long(one)
        deliver(models, one, 100, 300)
    assert run(here).returncode == 0
    with started(project) as daemon:
        wait_for(lambda: began(project))
        daemon.send_signal(signal.SIGKILL)
    (first,) = jobs(project)
    assert first[:3] == (300, "evaluate", "slurm") and first[4:] == (2, "open")
    assert f"iteration 300: slurm job {first[3]}: evaluate, 2 parts, open" in run(project, "--status").stdout
    shutil.rmtree(project / "checkpoints" / "checkpoint-300")  # the jobs read what the daemon has pinned
    slurm.call("scontrol", "shutdown", "slurmctld")
    with started(project) as daemon:
        wait_for(lambda: logged(project, "what runs goes on"))
        slurm.script("start-controller")
        assert daemon.wait(240) == 0, "\n".join(log_lines(project)[-20:])
    assert logged(project, f"job {first[3]} of a former daemon is taken up again")
    assert states(project) == {100: "recorded", 300: "recorded"}
    assert scores(project) == scores(here)
    assert all(row[5] == "ended" for row in jobs(project)) and len({row[3] for row in jobs(project)}) == 2
    ran = slurm.call("squeue", "--noheader", "--array", "--states=all", "--format=%F %T").splitlines()
    assert len(ran) == sum(int(str(row[4])) for row in jobs(project))
    for events in project.glob("out/*/iter_*/jobs/*/*.events.jsonl"):
        told = [json.loads(line)["event"] for line in events.read_text().splitlines()]
        assert told.count("ready") == 1
    results = list(project.glob("out/tiny-gpt2/iter_*/results/*/*.json"))
    assert len(results) == 4
    joined = Counter(f"{task} (all shares)" for task in ("first", "second"))
    assert told_of_shares(project, "share_done") == Counter(all_shares())
    assert told_of_shares(project, "share_started") == Counter(all_shares()) + joined
    # Measured, the tasks may take no longer than loading the model: then those of the next checkpoint are not cut.
    assert set(told_of_shares(project, "share_done", 100).values()) <= {1}


def test_ctrl_c_cancels_and_detach_leaves(slurm: Cluster, models: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", CONFIG + f"  runner: {SLURM}\n")
    deliver(models, project, 300)
    for flags, left in (([], 0), (["--detach"], 1)):
        with started(project, *flags) as daemon:
            wait_for(lambda: logged(project, "evaluation begins") and bool(slurm.jobs()))
            daemon.send_signal(signal.SIGINT)
            with Pace() as pace:
                begun = time.monotonic()
                assert daemon.wait(60) == 130
                assert time.monotonic() - begun < STOP_SECONDS + 0.5 + pace.takes(0.5)
        wait_for(lambda left=left: bool(slurm.jobs()) == bool(left))  # type: ignore[misc]
    assert [row[5] for row in jobs(project)] == ["ended", "open"]
    slurm.call("scancel", "--user=root")


def test_what_slurm_refuses_ends_the_daemon_and_fails_no_checkpoint(
    slurm: Cluster, models: Path, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "p", CONFIG + "  runner: {type: slurm, partition: nowhere}\n")
    deliver(models, project, 300)
    refused = run(project)
    assert refused.returncode == 2 and "auto_eval.runner: sbatch: " in refused.stderr
    assert "nvalid partition" in refused.stderr and states(project) == {300: "evaluating"}
    assert not slurm.jobs()


def test_conversion_has_a_runner_of_its_own(slurm: Cluster, megatron_saves: Path, megatron_project: Path) -> None:
    project = megatron_project
    config = MEGATRON_CONFIG + f"  runner: {SLURM}\n  conversion_runner: {{type: local, num_gpus: 0}}\n"
    (project / "evaluator.yaml").write_text(config)
    shutil.copytree(megatron_saves / "torch_dist" / "iter_0000100", project / "checkpoints" / "iter_0000100")
    (project / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("100")
    ended = run(project, "--once")
    assert ended.returncode == 0, ended.stderr
    assert states(project) == {100: "recorded"}
    assert [row[1:3] for row in jobs(project)] == [("convert", "local"), ("evaluate", "slurm")]
    assert all(state == "ended" for *_, state in jobs(project))
