"""A real Slurm of one node, started once for all tests that want it (setup_scripts/slurm.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "setup_scripts" / "slurm.sh"


@dataclass(frozen=True)
class Cluster:
    directory: Path

    def script(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [SCRIPT, command, self.directory, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def call(self, *command: str) -> str:
        """What it says. A controller that is busy may be asked again, but not to start something."""
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0 or "timed out" not in done.stderr or command[0] in ("srun", "sbatch"):
                break
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """``<id> <state>`` of what has not ended."""
        return self.call("squeue", "--noheader", "--array", "--format=%i %T").splitlines()

    def revive(self) -> None:
        """A killed controller may start a job twice, and then drains the node.

        A node that has come back by itself in between (``ReturnToService``) refuses to be resumed: only its state counts.
        """

        def is_back() -> bool:
            state = self.call("sinfo", "--noheader", "--nodes=ci0", "--format=%T")
            if "drain" not in state and "down" not in state:
                return True
            subprocess.run(["scontrol", "update", "NodeName=ci0", "State=RESUME"], capture_output=True, check=False)
            return False

        wait_for(is_back)


def start(directory: Path, *kind: str) -> Cluster:
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("there is no Slurm here: setup_scripts/slurm.sh install")
    if os.geteuid() != 0:
        pytest.skip("setup_scripts/slurm.sh starts its daemons as root")
    cluster = Cluster(directory)
    cluster.script("start", *kind)
    return cluster


@pytest.fixture(autouse=True)
def _ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """These queues are ours alone: nobody is served worse when they are asked every second."""
    monkeypatch.setattr("autoeval.runners.cluster.GREATEST_WAIT", 1.0)


@pytest.fixture(scope="session")
def shared_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.script("stop")


@pytest.fixture
def slurm(shared_slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.directory / "slurm.conf"))
    yield shared_slurm
    shared_slurm.script("start")  # whatever a test has killed
    shared_slurm.revive()
    if shared_slurm.jobs():
        shared_slurm.call("scancel", "--user=root")
        wait_for(lambda: not shared_slurm.jobs())
