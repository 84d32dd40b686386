"""Schedules on a real Slurm, whose controller is killed (SIGKILL) and comes back while the daemon and its jobs are
killed, too. Afterwards every score is there once and is the one that a daemon on this machine finds.

More of them: AUTOEVAL_CHAOS_SLURM=20 pytest tests/end_to_end/test_chaos_slurm.py
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import (
    CONFIG,
    HOME,
    command,
    deliver,
    log_lines,
    make_project,
    reasons,
    run,
    scores,
    states,
)
from tests.end_to_end.forked_programs import forking_popen
from tests.end_to_end.shares_world import make_long
from tests.runners.conftest import Cluster, start
from tests.waiting import wait_for

if str(Path(__file__).resolve().parents[1] / "recorder") not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "recorder"))

from tests.end_to_end.chaos_checks import wrong_in_views, wrong_on_disk

pytestmark = pytest.mark.slow

SLURM = "{type: slurm, partition: eval, num_gpus: 0, num_cpus: 1, memory_gb: 1, max_num_workers: 2, max_attempts: 9}"
FAULTS = ("controller", "controller", "daemon", "daemon", "job", "cancel")
SCHEDULES = int(os.environ.get("AUTOEVAL_CHAOS_SLURM", "1"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of this file's own."""
    made = start(tmp_path_factory.mktemp("slurm"))
    yield made
    made.script("stop")


@pytest.fixture(scope="module")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    project = make_project(tmp_path_factory.mktemp("undisturbed") / "p")
    make_long(project)  # its tasks are evaluated in shares
    deliver(models, project, 100, 200, 300)
    assert run(project).returncode == 0
    return scores(project)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_the_controller_the_daemon_and_jobs_are_killed(
    cluster: Cluster,
    models: Path,
    undisturbed: list[tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    chance = random.Random(seed)
    project = make_project(tmp_path / "p", CONFIG + f"  runner: {SLURM}\n")
    make_long(project)
    deliver(models, project, 100, 200)
    done: list[str] = []
    for _ in range(chance.randint(2, 3)):
        with _started(project) as daemon:
            wait_for(lambda: bool(_jobs_noted(project)) or daemon.poll() is not None)
            for fault in chance.sample(FAULTS, 2):
                time.sleep(chance.random() * 4)  # any moment will do: jobs wait, begin, compute, end
                done.append(fault)
                _strike(fault, cluster, daemon, chance)
                if daemon.poll() is not None:
                    break
            if daemon.poll() is None:
                daemon.send_signal(chance.choice((signal.SIGKILL, signal.SIGTERM)))
                daemon.wait(20)
        cluster.script("start-controller")
        cluster.revive()
    deliver(models, project, 300)
    for _ in range(3):  # what a cluster has lost for good is tried again when a person says so
        with _started(project) as daemon:
            status = _await_end(daemon, cluster)
        assert status is not None, f"{done}: the undisturbed daemon does not end: {log_lines(project)[-15:]}"
        if status == 0:
            break
        run(project, "--retry")
    said = f"faults {done}, states {reasons(project)}, log: {log_lines(project)[-15:]}"
    assert status == 0, said
    assert states(project) == {100: "recorded", 200: "recorded", 300: "recorded"}, said
    assert scores(project) == undisturbed, said
    assert wrong_on_disk(project / "out") + wrong_in_views(project / "out", "tiny-gpt2") == [], said
    wait_for(lambda: not cluster.jobs())


@contextlib.contextmanager
def _started(project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What it says goes to a file: nobody would read a pipe."""
    with (project / "console").open("ab") as console:
        daemon = forking_popen()(command(project), cwd=HOME, stderr=console)
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.kill()
        daemon.wait()


def _jobs_noted(project: Path) -> list[Path]:
    return list(project.glob("out/*/iter_*/jobs/*"))


def _await_end(daemon: subprocess.Popen[bytes], cluster: Cluster) -> int | None:
    """A node that the controller drained, because it started a job twice, is put back, as its administrator would."""
    until = time.monotonic() + 500
    while daemon.poll() is None and time.monotonic() < until:
        cluster.revive()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(2.0)
    return daemon.returncode


def _strike(fault: str, cluster: Cluster, daemon: subprocess.Popen[bytes], chance: random.Random) -> None:
    if fault == "controller":
        cluster.script("kill-controller")
        time.sleep(chance.random() * 2)
        cluster.script("start-controller")
    elif fault == "daemon":
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(20)
    elif jobs := cluster.jobs():
        which = chance.choice(jobs).split()[0]
        if fault == "cancel":
            subprocess.run(["scancel", which], capture_output=True, check=False)
        else:
            subprocess.run(["scancel", "--signal=KILL", "--full", which], capture_output=True, check=False)
