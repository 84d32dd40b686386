"""The daemon as a job of a real Slurm: it is told to end before its time limit, queued again, and goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import deliver, logged, scores, states
from tests.runners.conftest import Cluster, start
from tests.tiny_models import save_tiny_model
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "setup_scripts" / "daemon.sbatch"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.script("stop")


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    monkeypatch.setenv("AUTOEVAL_PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from tests.end_to_end.daemon_world import CONFIG, DATASET

    (tmp_path / "items.jsonl").write_text('{"question": "1 + 1 =", "A": "2", "B": "3", "answer": "A"}\n' * 3)
    (tmp_path / "two.py").write_text(DATASET.format(directory=tmp_path))
    (tmp_path / "evaluator.yaml").write_text(CONFIG.replace("mode: offline", "mode: disabled"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def submit(project: Path, *options: str, flags: tuple[str, ...] = ()) -> str:
    command = ["sbatch", "--parsable", f"--output={project}/job.log", "--mem=4G", *options, str(SCRIPT)]
    command += ["--config", str(project / "evaluator.yaml"), "--model-type", "huggingface"]
    command += ["--begin-iteration", "100", "--iteration-interval", "100", *flags]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(slurm: Cluster, job: str) -> str:
    return re.search(r"JobState=(\S+)", slurm.call("scontrol", "show", "job", job))[1]  # type: ignore[index]


def said(project: Path, text: str, times: int = 1) -> bool:
    log = project / "job.log"
    return log.exists() and log.read_text(errors="replace").count(text) >= times


def watching(project: Path, times: int = 1) -> bool:
    log = project / "out" / "logs" / "daemon.log"
    return log.exists() and log.read_text().count("watching") >= times


def test_before_the_time_limit_it_ends_in_order_is_queued_again_and_goes_on(slurm: Cluster, project: Path) -> None:
    save_tiny_model(project / "models" / "checkpoint-100", seed=1)
    save_tiny_model(project / "models" / "checkpoint-200", seed=2)
    deliver(project / "models", project, 100)
    job = submit(project, "--time=30", "--signal=B:USR1@120", flags=("--end-iteration", "200"))
    wait_for(lambda: states(project).get(100) == "recorded", 300)
    # However long that took, the limit is near now: Slurm looks every 30 s, and sends the signal at its next look.
    slurm.call("scontrol", "update", f"JobId={job}", "EndTime=now+150")
    wait_for(lambda: said(project, "the time limit is near"), 240)
    assert logged(project, "SIGTERM")
    before = scores(project)
    assert {row[0] for row in before} == {100}
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # the second start has time enough
    deliver(project / "models", project, 200)
    wait_for(lambda: said(project, "the daemon has ended with status 0"), 300)
    wait_for(lambda: state(slurm, job) == "COMPLETED", 90)
    assert said(project, f"start 1 of job {job}") and said(project, f"start 2 of job {job}")
    assert {row[0] for row in scores(project)} == {100, 200}
    assert [row for row in scores(project) if row[0] == 100] == before  # not computed again
    wait_for(lambda: not subprocess.run(["pgrep", "-f", str(project)], capture_output=True, check=False).stdout)


def test_it_is_ended_by_scancel_and_started_again_after_a_crash(slurm: Cluster, project: Path) -> None:
    script = project / "setup_scripts" / "daemon.sbatch"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    script.write_text(script.read_text().replace("sleep 30 &", "sleep 1 &"))
    for name in ("evaluator.py", "autoeval", "recorder", "config"):
        (project / name).symlink_to(ROOT / name)
    command = ["sbatch", "--parsable", f"--output={project}/job.log", str(script), "--config", "evaluator.yaml"]
    command += ["--model-type", "huggingface"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=True)
    job = done.stdout.strip()
    wait_for(lambda: watching(project), 120)
    pid = re.search(r'"pid": (\d+)', (project / "out" / "daemon.lock").read_text())[1]  # type: ignore[index]
    os.kill(int(pid), 9)
    wait_for(lambda: said(project, "ended with status 137 (1 times in a row)"), 90)
    wait_for(lambda: watching(project, 2), 120)
    slurm.call("scancel", job)
    wait_for(lambda: state(slurm, job) == "CANCELLED", 90)
    wait_for(lambda: logged(project, "SIGTERM"), 90)
    assert not said(project, "queued again")


def test_a_preempted_one_is_queued_again_also_where_slurm_would_cancel_it(slurm: Cluster, project: Path) -> None:
    job = submit(project, "--cpus-per-task=16")
    wait_for(lambda: watching(project), 120)
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-n1", "--cpus-per-task=16", "--mem=100M", "--wrap=sleep 5"]
    subprocess.run([*urgent, "--output=/dev/null"], capture_output=True, timeout=60, check=True)
    wait_for(lambda: said(project, "preempted: queued again"), 90)
    wait_for(lambda: watching(project, 2), 120)
    assert said(project, f"start 2 of job {job}")
    slurm.call("scancel", job)
    wait_for(lambda: state(slurm, job) == "CANCELLED", 90)


def test_what_cannot_work_is_told_in_the_job_s_log(
    slurm: Cluster, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOEVAL_PYTHON", "/nowhere/python")
    job = submit(project)
    wait_for(lambda: state(slurm, job) == "FAILED", 90)
    assert said(project, "/nowhere/python is not there")
    monkeypatch.setenv("AUTOEVAL_PYTHON", sys.executable)
    (project / "evaluator.yaml").write_text("auto_eval: {}\n")
    job = submit(project)
    wait_for(lambda: state(slurm, job) == "FAILED", 90)
    assert said(project, "the daemon has ended with status 2") and said(
        project, "auto_eval.model_name: the key is missing"
    )


def test_outside_of_slurm_it_says_what_it_is_for() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "give it to sbatch" in done.stderr
    assert "daemon.sbatch" in subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
