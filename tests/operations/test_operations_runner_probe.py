"""--doctor's probe job, through the queues themselves: Slurm and Ray for real, DLC's API imitated."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from autoeval.doctor import runner
from autoeval.doctor.finding import Finding
from autoeval.runner_sections import AnyRunner, RunnerSection
from tests.runners.conftest import Cluster, start
from tests.runners.dlc_service import DlcService
from tests.waiting import wait_for

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyRunner)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """work_dir, checkpoint directory."""
    for name in ("out", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoints" / "file").write_text("x")
    return tmp_path / "out", tmp_path / "checkpoints"


def examine(places: tuple[Path, Path], patience: float = 240.0, **section: Any) -> list[Finding]:
    work_dir, checkpoints = places
    parsed: RunnerSection = ADAPTER.validate_python(section)
    found = list(runner.examine_runner("runner", parsed, work_dir, checkpoints, checkpoints / "file", patience))
    assert list(work_dir.iterdir()) == [], "the probe has left something behind"
    return found


def test_the_local_runner_answers_from_a_process_like_the_worker(places: tuple[Path, Path]) -> None:
    (found,) = examine(places, type="local")
    assert found.level == "ok" and found.check == "runner (local)"
    assert sys.executable in found.found and "torch 2" in found.found


def test_what_the_machine_of_the_work_does_not_see_is_told_each_by_itself(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = time.time()
    answer = {
        "user": "me", "python": "/python", "version": "3.11.7", "repository": "/r", "gpus": None, "torch": None,
        "host": "node7", "work_dir": "/out: Read-only file system", "checkpoints": "/data: Permission denied",
        "newest": "/data/file: Permission denied", "torch_error": "ImportError: libcudart", "digest": "other",
        "cuda": [], "time": asked - 100,
    }  # fmt: skip
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (tmp_path / "request.json").write_text("{}")
    os.utime(tmp_path / "request.json", (asked, asked))
    section = ADAPTER.validate_python({"type": "slurm", "num_gpus": 2})
    first, *others = runner._judged("runner", section, tmp_path, "")
    assert first.level == "ok" and "on node7" in first.found
    told = [one.found for one in others]
    for part in (
        "Read-only",
        "/data: Perm",
        "/data/file",
        "libcudart",
        "other sources",
        "2 GPUs were asked",
        "100 s behind",
    ):
        assert sum(part in one for one in told) == 1, part
    assert [one.level for one in others] == ["problem"] * 6 + ["warning"]


# -- Slurm -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.script("stop")


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield cluster
    if cluster.jobs():  # a job that a killed controller has brought back
        cluster.call("scancel", "--user=root")
        wait_for(lambda: not cluster.jobs())


@pytest.mark.slow
def test_slurm_a_job_answers_and_the_gpus_it_asked_for_are_compared_with_what_torch_sees(
    slurm: Cluster, places: tuple[Path, Path]
) -> None:
    found = examine(places, type="slurm", partition="debug", num_gpus=0, memory_gb=2)
    assert [one.level for one in found] == ["ok"], found
    assert "answered after" in found[0].found
    found = examine(places, type="slurm", num_gpus=2, memory_gb=2)  # pretended ones: torch sees none
    assert [one.level for one in found] == ["ok", "problem"], found
    assert "2 GPUs were asked for" in found[1].found and "CUDA_VISIBLE_DEVICES=" in found[1].found


@pytest.mark.slow
def test_slurm_what_is_refused_held_pending_or_broken_is_told_apart(
    slurm: Cluster, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (refused,) = examine(places, type="slurm", partition="nowhere", num_gpus=0)
    assert refused.level == "problem" and "partition" in refused.found
    (held,) = examine(places, type="slurm", num_gpus=0, extra=["--hold"])
    assert held.level == "problem" and "is held: PENDING (JobHeldUser)" in held.found
    slurm.call("sbatch", "--cpus-per-task=16", "--mem=100M", "--wrap=sleep 600", "--output=/dev/null")
    wait_for(lambda: any("RUNNING" in job for job in slurm.jobs()))
    (pending,) = examine(places, patience=3.0, type="slurm", num_gpus=0)
    assert pending.level == "warning" and "was still waiting after 3 s: PENDING" in pending.found
    slurm.call("scancel", "--user=root")
    wait_for(lambda: not slurm.jobs())
    monkeypatch.setattr(runner, "UNANSWERED_SECONDS", 1.0)
    monkeypatch.setattr(runner.sys, "executable", "/nowhere/python")
    (broken,) = examine(places, type="slurm", num_gpus=0)
    assert broken.level == "problem" and "ended without an answer: FAILED" in broken.found
    assert "/nowhere/python" in broken.found  # what the job said


@pytest.mark.slow
def test_slurm_a_controller_that_is_away(slurm: Cluster, places: tuple[Path, Path]) -> None:
    slurm.script("kill-controller")
    try:
        (found,) = examine(places, type="slurm", num_gpus=0)
        assert found.level == "problem" and "does not answer" in found.found
    finally:
        slurm.script("start-controller")
        slurm.revive()


# -- Ray, DLC ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray(places: tuple[Path, Path]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # The niceness is 15 by default: beside other tests it would hardly run at all.
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"})
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        found = examine(places, patience=240.0, type="ray", address=made.address, num_gpus=0)
        assert [one.level for one in found] == ["ok"], found
        (pending,) = examine(places, patience=8.0, type="ray", address=made.address, num_gpus=1)
        assert pending.level == "warning" and "no node has 1 GPUs" in pending.found
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_dlc(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("alibabacloud_pai_dlc20201203", reason="the SDK is not installed")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret")
    service = DlcService()
    try:
        settings = {"workspace_id": "7", "worker_image": "image", "endpoint": service.endpoint, "protocol": "http"}
        found = examine(places, type="dlc", aliyun_cfg=settings, num_gpus=0)
        assert [one.level for one in found] == ["ok"], found
    finally:
        service.close()
