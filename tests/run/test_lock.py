"""The lock of a work directory, its heartbeat, and what --status says of them; other hosts are imitated by their files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoeval import heartbeat, lock
from autoeval.heartbeat import Doing, Heart, read_heartbeat
from autoeval.lock import Holder, WorkDirectoryLock
from autoeval.runners.processes import Identity, identify
from autoeval.yaml_file import ConfigError


def me() -> Identity:
    found = identify(os.getpid())
    assert found is not None
    return found


def left_by(directory: Path, process: Identity, job: str = "") -> None:
    (directory / "daemon.lock").write_text(json.dumps(process.as_json() | {"job": job}))


def beaten_by(directory: Path, process: Identity, age: float, state: str = "evaluating") -> None:
    heart = Heart()
    heart.directories = (directory,)
    heart.beat(Doing(state, "gpt", 2000, ("mmlu",)))
    path = directory / "heartbeat.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | process.as_json()))
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def gone() -> Identity:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        found = identify(process.pid)
    assert found is not None
    return found


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(lock, "WITHOUT_FLOCK_SECONDS", 0.0)


def test_a_second_one_is_refused_and_a_released_one_is_free(tmp_path: Path) -> None:
    first = WorkDirectoryLock(tmp_path)
    script = f"from autoeval.lock import WorkDirectoryLock as L; from pathlib import Path; L(Path({str(tmp_path)!r}))"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on host {me().host}" in second.stderr
    first.release()
    assert (tmp_path / "daemon.lock").read_text() == ""
    WorkDirectoryLock(tmp_path).release()


def test_one_that_was_killed_here_is_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_by(tmp_path, gone())
    WorkDirectoryLock(tmp_path).release()
    assert "which is gone, is taken over" in caplog.text


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_living_process_is_respected(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = identify(other.pid)
        assert process is not None
        left_by(tmp_path, process)
        with pytest.raises(ConfigError, match=f"process {other.pid} on host"):
            WorkDirectoryLock(tmp_path)
        left_by(tmp_path, replace(process, started=process.started - 1))  # the number had another owner
        WorkDirectoryLock(tmp_path).release()
        left_by(tmp_path, replace(process, boot="before the machine was started again"))
        held = WorkDirectoryLock(tmp_path)
        assert held.keeps()
        left_by(tmp_path, process)  # cleared and taken by another
        assert not held.keeps()
        other.communicate(b"\n")


@pytest.mark.parametrize("locks", [True, False])
def test_of_another_host_only_the_heartbeat_is_known(
    tmp_path: Path, locks: bool, request: pytest.FixtureRequest
) -> None:
    if not locks:
        request.getfixturevalue("no_flock")
    there = replace(me(), host="node17", pid=4321)
    left_by(tmp_path, there)
    beaten_by(tmp_path, there, age=5)
    with pytest.raises(ConfigError, match=r"another daemon is at work here: process 4321 on host node17; evaluating"):
        WorkDirectoryLock(tmp_path)
    beaten_by(tmp_path, there, age=7200)
    with pytest.raises(ConfigError, match=rf"looks stale \(no sign of life for 2 h\).*: rm {tmp_path}/daemon.lock"):
        WorkDirectoryLock(tmp_path)
    (tmp_path / "daemon.lock").unlink()
    WorkDirectoryLock(tmp_path).release()


def test_a_slurm_job_that_was_started_again_elsewhere_takes_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(tmp_path, replace(me(), host="node17"), job="88")
    monkeypatch.setenv("SLURM_JOB_ID", "89")
    with pytest.raises(ConfigError, match="looks stale"):
        WorkDirectoryLock(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "88")
    WorkDirectoryLock(tmp_path).release()


def test_a_lock_file_that_vanishes_is_written_again(tmp_path: Path) -> None:
    held = WorkDirectoryLock(tmp_path)
    (tmp_path / "daemon.lock").unlink()
    assert held.keeps()
    assert str(os.getpid()) in (tmp_path / "daemon.lock").read_text()


def test_a_full_disk_is_told_and_leaves_nothing_locked(tmp_path: Path) -> None:
    with no_room(), pytest.raises(ConfigError, match="the work directory cannot be written"):
        WorkDirectoryLock(tmp_path)
    WorkDirectoryLock(tmp_path).release()


def test_a_file_system_that_is_away_or_full_is_no_other_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = WorkDirectoryLock(tmp_path)

    def away(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as while_it_is_away:
        for name in ("read_text", "read_bytes", "open"):
            while_it_is_away.setattr(Path, name, away)
        assert held.keeps()
    script = f"from autoeval.lock import WorkDirectoryLock as L; from pathlib import Path; L(Path({str(tmp_path)!r}))"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on host" in second.stderr  # it was not let go of
    (tmp_path / "daemon.lock").unlink()
    with no_room():
        assert held.keeps()
    assert held.keeps() and str(os.getpid()) in (tmp_path / "daemon.lock").read_text()
    held.release()


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can be written to, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": "x"}'):
        (tmp_path / "daemon.lock").write_text(content)
        WorkDirectoryLock(tmp_path).release()
        (tmp_path / "heartbeat.json").write_text(content)
        assert read_heartbeat(tmp_path) is None


def test_it_beats_at_news_and_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    heart = Heart()
    heart.directories = (tmp_path,)
    assert heart.beat(Doing("idle"))
    path = tmp_path / "heartbeat.json"
    first = path.read_text()
    path.unlink()
    now[0] += 1
    assert not heart.beat(Doing("idle")) and not path.exists()  # nothing new
    assert heart.due_in() == heartbeat.INTERVAL_SECONDS - 1
    assert not heart.beat(Doing("converting", "gpt", 1000)) and path.exists()
    path.unlink()
    now[0] += heartbeat.INTERVAL_SECONDS
    assert heart.beat(Doing("converting", "gpt", 1000)) and path.exists()
    assert json.loads(first)["state"] == "idle" and len(first) < 500
    assert [file.name for file in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_full_disk_keeps_nobody_from_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    heart = Heart()
    heart.directories = (tmp_path,)
    heart.beat(Doing("idle"))
    assert list(tmp_path.iterdir()) == []


def test_nor_does_a_process_without_a_free_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(heartbeat, "identify", none_left)
    heart = Heart()
    heart.directories = (tmp_path,)
    assert heart.beat(Doing("stopping"))
    assert list(tmp_path.iterdir()) == []


SAID: list[tuple[Callable[[], Identity], float, str, str]] = [
    (
        me,
        3,
        "evaluating",
        r"process \d+ on host \S+: evaluating gpt iteration 2000 \(mmlu\), last sign of life [3-9] s ago",
    ),
    (me, 600, "evaluating", r"no sign of life since .*, 10 min ago: .* was evaluating gpt iteration 2000 \(mmlu\)$"),
    (
        gone,
        3,
        "evaluating",
        r"no sign of life since .* was evaluating gpt iteration 2000 \(mmlu\); the process is gone",
    ),
    (gone, 7200, "ended", r"no daemon is at work: process \d+ on host \S+ ended at .*, 2 h ago"),
    (
        lambda: replace(me(), host="node17"),
        30,
        "idle",
        r"process \d+ on host node17: idle .*last sign of life 3\d s ago",
    ),
]


@pytest.mark.parametrize(("who", "age", "state", "said"), SAID)
def test_what_status_says(tmp_path: Path, who: Callable[[], Identity], age: float, state: str, said: str) -> None:
    import re

    beaten_by(tmp_path, who(), age, state)
    beat = read_heartbeat(tmp_path)
    assert beat is not None and re.search(said, str(beat)), str(beat)
    assert beat.as_json()["silent"] == ("no sign of life" in said)


def test_a_holder_says_its_job() -> None:
    assert str(Holder(replace(me(), pid=7, host="a"), "12")) == "process 7 on host a (Slurm job 12)"
