"""What is said of Slurm's states and flags, without a Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoeval.runners import build_runner
from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused, Resources
from autoeval.runners.slurm import Slurm, SlurmOptions, state_of


@pytest.mark.parametrize(
    ("name", "reason", "kind"),
    [
        ("PENDING", "Resources", "waiting"),
        ("PENDING", "Priority", "waiting"),
        ("PENDING", "BeginTime", "waiting"),
        ("PENDING", "JobArrayTaskLimit", "waiting"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "waiting"),
        ("PENDING", "AssocGrpGRES", "waiting"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:ci0", "waiting"),
        ("PENDING", "JobHeldUser", "held"),
        ("PENDING", "launch_failed_requeued_held", "held"),
        ("PENDING", "PartitionTimeLimit", "held"),
        ("PENDING", "DependencyNeverSatisfied", "held"),
        ("PENDING", "InvalidQOS", "held"),
        ("PENDING", "PartitionConfig", "held"),
        ("REQUEUE_HOLD", "None", "held"),
        ("RUNNING", "None", "running"),
        ("COMPLETING", "None", "running"),
        ("SUSPENDED", "None", "waiting"),
        ("CANCELLED", "None", "ended"),
        ("TIMEOUT", "TimeLimit", "ended"),
        ("A_STATE_OF_TOMORROW", "None", "ended"),
    ],
)
def test_states(name: str, reason: str, kind: str) -> None:
    assert state_of(name, reason).kind == kind
    assert state_of("FAILED", "NonZeroExitCode") == JobState("ended", "FAILED", "", again=True)


def array(**changes: object) -> JobArray:
    values = {"key": "k", "name": "n", "command": ["c"], "size": 3, "resources": Resources(), "log": Path("/d/50%.log")}
    return JobArray(**{**values, **changes})  # type: ignore[arg-type]


def test_flags_are_given_only_when_set() -> None:
    plain = Slurm(SlurmOptions()).flags(array())
    assert not any(
        flag.startswith(("--quotatype", "--qos", "--gres", "--time", "--mem", "--partition")) for flag in plain
    )
    assert "--output=/d/50%%.%a.log" in plain and "--array=0-2%1" in plain
    options = SlurmOptions("p", "auto", "q", "a", "gpu:h200", ("--exclude=n7",))
    flags = Slurm(options).flags(array(resources=Resources(2, 4, 1.5, 90), at_once=2))
    for flag in ("partition=p", "quotatype=auto", "qos=q", "account=a", "gres=gpu:h200:2", "exclude=n7", "time=90"):
        assert f"--{flag}" in flags
    assert {"--mem=1536M", "--cpus-per-task=4", "--array=0-2%2"} <= set(flags)


def test_without_slurm_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    queue = Slurm(SlurmOptions())
    with pytest.raises(QueueRefused, match="no such program on this machine"):
        queue.submit(array(log=tmp_path / "a.log", environment={"PATH": str(tmp_path)}))
    with pytest.raises(QueueError, match="squeue"):
        queue.find("k")
    assert queue.poll({"1": 2}) == {
        "1": [JobState("unknown", reason="squeue: there is no such program on this machine")] * 2
    }


def test_wrong_options_are_named() -> None:
    for options, message in (
        ({"extra": "--x"}, "extra is '--x', expected a list"),
        ({"extra": ["rm -rf"]}, "expected a list of options"),
        ({"minutes": 0}, "minutes is 0"),
        ({"max_queued": 0}, "max_queued is 0"),
        ({"partitoin": "x"}, "unexpected keyword argument 'partitoin'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_runner({"type": "SlurmRunner", **options})
    with pytest.raises(ValueError, match="there is no such runner here"):
        build_runner({"type": "VOLCRunner"})
