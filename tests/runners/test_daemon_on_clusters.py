"""The daemon on a real Ray cluster of two nodes, on an imitation of DLC's service that really runs what it is given, and in
slots of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

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
from tests.runners.dlc_service import DlcService
from tests.tiny_models import save_tiny_model
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    save_tiny_model(directory / "checkpoint-300", seed=300)
    return directory


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster in processes of its own: this one may be a client of another."""
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine they would hardly get a turn
    code = (
        "import sys; from ray.cluster_utils import Cluster;"
        "made = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'num_gpus': 1, 'include_dashboard': False});"
        "made.add_node(num_cpus=2, num_gpus=1); made.wait_for_nodes();"
        "print(made.address, flush=True); sys.stdin.read(); made.shutdown()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[DlcService]:
    pytest.importorskip("alibabacloud_pai_dlc20201203", reason="the SDK of DLC is not installed")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-of-the-user")
    running = DlcService()
    yield running
    running.close()


def jobs(project: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(project / "out" / "ledger.sqlite")) as connection:
        return connection.execute("SELECT stage, runner, size, state FROM jobs").fetchall()


def at_a_share(project: Path) -> set[int]:
    """The processes of jobs that have begun a share and not told of its end."""
    found = set()
    for file in project.rglob("part*.events.jsonl"):
        events = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        told = [event["event"] for event in events]
        if told.count("share_started") > told.count("share_done") and "checkpoint_done" not in told:
            found.add(next(event["pid"] for event in events if event["event"] == "ready"))
    return found


def test_on_ray_and_on_dlc_the_scores_are_the_same(
    models: Path, ray_address: str, service: DlcService, tmp_path: Path
) -> None:
    ray = f"  runner: {{type: ray, address: '{ray_address}', num_gpus: 1, num_cpus: 1, max_num_workers: 2}}\n"
    aliyun = f"workspace_id: 7, worker_image: i, endpoint: '{service.endpoint}', protocol: http"
    dlc = f"  runner: {{type: dlc, aliyun_cfg: {{{aliyun}}}, num_gpus: 0, max_num_workers: 1}}\n"
    found = []
    for name, section in (("ray", ray), ("dlc", dlc)):
        project = make_project(tmp_path / name, CONFIG + section)
        deliver(models, project, 300)
        ended = run(project, seconds=900)
        assert ended.returncode == 0, ended.stderr
        assert states(project) == {300: "recorded"}
        assert {row[1] for row in jobs(project)} == {name} and {row[3] for row in jobs(project)} == {"ended"}
        assert all(row[2] == 1 for row in jobs(project))  # neither has arrays
        found.append(scores(project))
    assert found[0] == found[1] and len(found[0]) == 2
    assert [job["Status"] for job in service.jobs.values()] in (["Succeeded"], ["Running"], ["Stopped"])
    assert "secret-of-the-user" not in "".join(
        file.read_text(errors="replace") for file in (tmp_path / "dlc" / "out").rglob("*") if file.is_file()
    )


def test_jobs_in_slots_that_ended_with_a_killed_daemon_are_begun_again(models: Path, tmp_path: Path) -> None:
    """The daemon is killed when some shares of tasks are there, then a job: what is there is kept, and the result is that of
    one process."""
    here = make_project(tmp_path / "here")
    slots = "  runner: {type: local, max_num_workers: 2, num_gpus: 0, retry: 1}\n"
    project = make_project(tmp_path / "slots", CONFIG + slots)
    for one in (here, project):
        make_long(one)
        deliver(models, one, 300)
    with started(project) as daemon:
        wait_for(lambda: bool(told_of_shares(project, "share_done")))
        daemon.kill()
    killed = at_a_share(project)
    with started(project) as daemon:
        wait_for(lambda: bool(at_a_share(project) - killed))
        with contextlib.suppress(ProcessLookupError):
            os.kill(min(at_a_share(project) - killed), signal.SIGKILL)
        assert daemon.wait(300) == 0, "\n".join(log_lines(project)[-20:])
    assert states(project) == {300: "recorded"}
    assert logged(project, "is taken up again") and logged(project, "who submitted it has ended")
    assert logged(project, "(1 times; log: ")  # the job's death
    assert {row[3] for row in jobs(project)} == {"ended"}
    done, begun = told_of_shares(project, "share_done"), told_of_shares(project, "share_started")
    assert set(done) <= set(all_shares()) <= set(begun) and set(done.values()) == {1}  # none twice
    assert len(done) >= len(all_shares()) - 3  # a job may have been killed between a share's file and telling of it
    assert run(here).returncode == 0 and not told_of_shares(here, "share_started")
    assert scores(project) == scores(here) and len(scores(here)) == 2
    assert not list((project / "out").rglob("share*.json"))
