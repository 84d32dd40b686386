"""Ctrl-C while a job is being submitted, and a submission that a signal has ended."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.jobs import JobArray, JobState, QueueError, Resources
from autoeval.runners.slurm import Slurm, SlurmOptions
from tests.run.programs import Program

SBATCH = """#!/bin/sh
echo $$ $(cut -d" " -f6 /proc/$$/stat) > "$SAID"
kill -INT $$
"""


def test_sbatch_hears_no_ctrl_c_of_ours_and_one_that_was_killed_has_refused_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    array = JobArray("k", "k", ["true"], 1, Resources(), tmp_path / "k.log")
    with pytest.raises(QueueError, match="sbatch: -2"):
        Slurm(SlurmOptions()).submit(array)
    pid, session = (tmp_path / "said").read_text().split()
    assert pid == session


class Interrupted:
    """A queue that has just taken a job when Ctrl-C comes."""

    arrays = True

    def __init__(self, taken: bool) -> None:
        self.taken, self.cancelled = taken, list[str]()
        self.key = ""

    def submit(self, array: JobArray) -> str:
        self.key = array.key
        raise KeyboardInterrupt

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        return {job: [JobState("ended", "CANCELLED")] * size for job, size in jobs.items()}

    def cancel(self, jobs: Iterable[str]) -> None:
        self.cancelled += jobs

    def told(self, log: str) -> str | None:
        del log
        return None

    def find(self, key: str) -> str | None:
        return "7" if self.taken and key == self.key else None


@pytest.mark.parametrize("taken", [True, False])
def test_ctrl_c_cancels_what_was_just_submitted(tmp_path: Path, taken: bool) -> None:
    queue = Interrupted(taken)
    with pytest.raises(KeyboardInterrupt):
        ClusterRunner(queue).launch([Program(tmp_path, "t", "out.touch()")], [tmp_path / "c" / "0.json"])
    assert queue.cancelled == (["7"] if taken else [])
