"""DLCRunner against an imitation of the service (the real SDK asks it) and against a program in place of ``dlc``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.runners import build_runner
from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.dlc import state_of
from autoeval.runners.dlc_runner import read_aliyun_cfg
from autoeval.runners.jobs import QueueError, QueueRefused
from tests.run.programs import Program, in_background, launch
from tests.runners.conftest import REPOSITORY
from tests.runners.dlc_service import DlcService
from tests.waiting import wait_for

STATES = (
    "Creating Queuing Bidding EnvPreparing SanityChecking Running Restarting Stopping SucceededReserving "
    "FailedReserving Succeeded Failed Stopped"
)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[DlcService]:
    pytest.importorskip("alibabacloud_pai_dlc20201203", reason="the SDK of DLC is not installed")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-of-the-user")
    monkeypatch.setattr("autoeval.runners.cluster.LEAST_WAIT", 0.05)
    monkeypatch.setattr("autoeval.runners.cluster.GREATEST_WAIT", 0.1)
    running = DlcService()
    yield running
    running.close()


def build(service: DlcService, *, image: str = "image:1", **options: object) -> ClusterRunner:
    settings = {"workspace_id": 7, "worker_image": image, "endpoint": service.endpoint, "protocol": "http"}
    runner = build_runner({"type": "DLCRunner", "aliyun_cfg": settings, **options}, environment={"MODEL_KEY": "k"})
    assert isinstance(runner, ClusterRunner)
    runner._sleep = lambda seconds: threading.Event().wait(min(seconds, 0.05))  # type: ignore[assignment]
    return runner


def test_every_state_is_known() -> None:
    kinds = {name: state_of(name, "").kind for name in STATES.split()}
    assert set(kinds.values()) == {"waiting", "running", "ended"}
    assert [name for name, kind in kinds.items() if kind == "ended"] == ["Succeeded", "Failed", "Stopped"]
    assert state_of("", "").kind == "gone" and state_of("Tomorrow", "").kind == "unknown"


def test_outcomes_tries_and_what_is_asked_for(
    service: DlcService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-for-tasks")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = "n=out.with_suffix('.n'); n.exists() and out.touch(); n.touch(); sys.exit(not out.exists())"
    tasks = [
        Program(tmp_path, "good", "print(sorted(os.environ)); out.touch()", gpus=2),
        Program(tmp_path, "second", again),
        Program(tmp_path, "input", "sys.exit(2)"),
        Program(tmp_path, "bad", "sys.exit(1)"),
    ]
    outcomes = launch(build(service, max_num_workers=2, retry=1, minutes=90), tasks, tmp_path)
    assert [(one.ok, one.code, one.tries) for one in outcomes] == [
        (True, 0, 1),
        (True, 0, 2),
        (False, 2, 1),
        (False, 1, 2),
    ]
    seen = outcomes[0].lines()[0]
    assert "MODEL_KEY" in seen and "HF_HUB_OFFLINE" in seen
    assert "WANDB_API_KEY" not in seen and "ALIBABA_CLOUD_ACCESS_KEY_SECRET" not in seen
    first = service.jobs["dlc0000000000000"]
    assert (first["WorkspaceId"], first["JobType"], first["JobMaxRunningTimeMinutes"]) == ("7", "PyTorchJob", 90)
    (spec,) = first["JobSpecs"]
    assert (spec["Type"], spec["PodCount"], spec["Image"]) == ("Worker", 1, "image:1")
    assert spec["ResourceConfig"] == {"CPU": "12", "GPU": "2", "Memory": "64Gi"}
    assert len(service.jobs) == 6 and len({str(job["Settings"]["Tags"]) for job in service.jobs.values()}) == 6


def test_what_fails_for_a_moment_is_asked_again_and_never_submitted_twice(service: DlcService, tmp_path: Path) -> None:
    service.faults = {"CreateJob": [429, "lost"], "ListJobs": [503], "GetJob": [500, None, 429]}
    (outcome,) = launch(build(service), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    assert outcome.ok and len(service.jobs) == 1
    assert [action for action, _, _ in service.requests[:5]] == [
        "CreateJob",
        "ListJobs",
        "ListJobs",
        "CreateJob",
        "ListJobs",
    ]


def test_what_is_refused_is_a_wrong_configuration(service: DlcService, tmp_path: Path) -> None:
    with pytest.raises(QueueRefused, match=r"InvalidParameter.*Image is invalid"):
        launch(build(service, image="no-such-image"), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    service.close()
    with pytest.raises(QueueError, match="after 6 tries"):
        launch(build(service), [Program(tmp_path, "t", "out.touch()")], tmp_path)
    code = "from autoeval.runners.dlc import DlcSdk; DlcSdk()"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert "QueueRefused: DLC: no credentials (ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET)" in done.stderr


def test_a_stopped_job_is_not_tried_again_and_ctrl_c_stops(service: DlcService, tmp_path: Path) -> None:
    up = tmp_path / "out" / "t" / "d.up"
    task = Program(tmp_path, "t", "out.with_suffix('.up').touch(); time.sleep(60)")
    runner = build(service, retry=3)
    thread, outcomes = in_background(lambda: launch(runner, [task], tmp_path))
    wait_for(up.exists)
    runner.queue.cancel(["dlc0000000000000_0"])
    thread.join(90)
    assert [(one.ok, one.tries) for one in outcomes] == [(False, 1)]
    up.unlink()
    looks = iter(range(10**6))

    def interrupt(_seconds: float) -> None:
        threading.Event().wait(0.02)
        if up.exists() and next(looks) == 0:
            raise KeyboardInterrupt

    runner = build(service)
    runner._sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        launch(runner, [task], tmp_path)
    assert {job["Status"] for job in service.jobs.values()} == {"Stopped"}


DLC = """#!{python}
# The command as its documentation shows it: a table with the id, JSON after a first line, words for what is wrong.
import json, pathlib, subprocess, sys
here, words = pathlib.Path({here!r}), sys.argv[1:]
(here / "calls").open("a").write(json.dumps(words) + "\\n")
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
if words[:2] == ["submit", "pytorchjob"]:
    if flags["worker_image"] == "bad":
        print("[FAILED] code: 400, Image is invalid"); sys.exit(1)
    env = dict(pair.split("=", 1) for pair in flags.get("envs", "").split(",") if pair)
    code = subprocess.run(["sh", "-c", flags["command"]], env={{"PATH": {path!r}, **env}}, stdin=subprocess.DEVNULL).returncode
    (here / "status").write_text("Failed" if code else "Succeeded")
    print("+------------------+\\n|      JobId       |\\n+------------------+\\n| dlc1a2b3c4d5e6f7 |")
elif words[:2] == ["get", "job"]:
    print("[OK] request id: r\\n" + json.dumps({{"Status": (here / "status").read_text(), "JobId": words[2]}}))
else:
    print("[FAILED] code: 400, Job can't be stopped, because it is Succeeded"); sys.exit(1)
"""


def test_the_dlc_command(tmp_path: Path) -> None:
    program = tmp_path / "dlc"
    program.write_text(DLC.format(python=sys.executable, here=str(tmp_path), path=os.environ["PATH"]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "bashrc").write_text("export FROM_BASHRC=yes\nconda() { export ENVIRONMENT=$2; }\n")
    (tmp_path / "aliyun.cfg").write_text(
        f"bashrc_path = {str(tmp_path / 'bashrc')!r}\nconda_env_name = 'it; rm -rf x'\n"
        f"dlc_config_path = '/home/u/.dlc/config'\nworkspace_id = 'ws'\nworker_image = 'image'\n"
    )
    content = read_aliyun_cfg(tmp_path / "aliyun.cfg")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python").symlink_to(sys.executable)
    runner = build_runner({"type": "DLCRunner", "aliyun_cfg": {**content, "dlc_program": str(program)}, "num_cpus": 3})
    code = "print(os.environ['FROM_BASHRC'], os.environ['ENVIRONMENT']); out.touch()"
    (outcome,) = launch(runner, [Program(tmp_path, "t", code)], tmp_path)  # type: ignore[arg-type]
    assert outcome.ok and outcome.lines() == ["yes it; rm -rf x"]
    submitted = json.loads((tmp_path / "calls").read_text().splitlines()[0])
    for word in ("--workspace_id=ws", "--worker_image=image", "--worker_cpu=3", "--worker_gpu=0", "--config"):
        assert word in submitted
    bad = build_runner(
        {"type": "DLCRunner", "aliyun_cfg": {**content, "worker_image": "bad", "dlc_program": str(program)}}
    )
    with pytest.raises(QueueRefused, match=r"dlc submit: .*Image is invalid"):
        launch(bad, [Program(tmp_path, "t", code)], tmp_path)  # type: ignore[arg-type]


def test_settings_are_read_without_running_them(tmp_path: Path) -> None:
    file = tmp_path / "aliyun.cfg"
    file.write_text("workspace_id: ws\nworker_image: image\n")
    assert read_aliyun_cfg(file) == {"workspace_id": "ws", "worker_image": "image"}
    for text, message in (
        ("import os\nworkspace_id = 'ws'\n", "expected keys such as workspace_id|while scanning|expected"),
        ("workspace_id = open('x')\n", "malformed node"),
        ("workspace_id: ws\n", "it lacks worker_image"),
        ("workspace_id: ws\nworker_imgae: i\n", "unknown key 'worker_imgae'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            build_runner({"type": "DLCRunner", "aliyun_cfg": str(file)})
    with pytest.raises(ValueError, match=r"none\.cfg: .*expected the DLC settings"):
        build_runner({"type": "DLCRunner", "aliyun_cfg": str(tmp_path / "none.cfg")})
