"""Signals: whatever hangs, all has ended five seconds after SIGTERM; SIGHUP reads evaluator.yaml again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoeval.ending import STOP_SECONDS
from tests.end_to_end.daemon_world import (
    CONFIG,
    HOME,
    deliver,
    log_lines,
    logged,
    run,
    scores,
    started,
    states,
    turns,
)
from tests.pace import Pace
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

# A main thread that is in a call that does not return, with a child in a session of its own that is not going to end.
STUCK = """
import subprocess, sys, threading
from autoeval.signals import Signals
with Signals() as signals:
    signals.on_stop = lambda number: None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    while True:
        threading.Event().wait()
"""


def left_of(project: Path) -> list[str]:
    """Processes that have to do with ``project``: by their command line, or what they were started with."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if str(project).encode() in told and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(f"{entry.name} {told[:200]!r}")
            except OSError:
                continue
    return found


@pytest.fixture
def hung_server() -> Iterator[str]:
    """A W&B that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for one in held:
        one.close()


def pid_of_worker(project: Path) -> int:
    line = [line for line in log_lines(project) if "worker is ready" in line][-1]
    return int(line.rpartition("process ")[2].rstrip(")"))


def ends_within_five_seconds(daemon: subprocess.Popen[str], number: int) -> bool:
    """Of the five, force begins after 4.5, and what it does then takes as long as it takes on a busy machine."""
    with Pace() as pace:
        began = time.monotonic()
        daemon.send_signal(number)
        try:
            daemon.wait(60)
        finally:
            daemon.kill()  # one that does not end would be waited for
        took = time.monotonic() - began
    print(f"ended after {took:.2f} s; half a second of work took {pace.takes(0.5):.2f} s")
    return took < STOP_SECONDS + 0.5 + pace.takes(0.5)


def test_sigterm_while_w_and_b_hangs_and_the_worker_no_longer_hears(
    models: Path, project: Path, hung_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("AUTOEVAL_TEST", str(project))  # in the environment of all that it starts
    online = f"wandb: {{mode: online, entity: team, base_url: '{hung_server}'}}"
    (project / "evaluator.yaml").write_text(CONFIG.replace("wandb: {mode: offline}", online))
    deliver(models, project, 100)
    with started(project, fresh=True) as daemon:
        wait_for(lambda: logged(project, "report and leaderboard are up to date"))
        wait_for(lambda: any("--publish" in one for one in map(command_of, children_of(daemon.pid))))
        os.kill(pid_of_worker(project), signal.SIGSTOP)  # it will not notice that its input is closed
        assert ends_within_five_seconds(daemon, signal.SIGTERM)
        assert daemon.returncode == 128 + signal.SIGTERM
        wait_for(lambda: not left_of(project))  # what was killed takes a moment to let go of its memory
    assert json.loads((project / "out" / "heartbeat.json").read_text())["state"] == "ended"
    assert states(project) == {100: "recorded"}


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.parametrize("place", ["", "import logging; logging.basicConfig(); logging.root.handlers[0].acquire()"])
def test_a_main_thread_that_is_stuck_is_ended_by_force_with_all_it_started(place: str) -> None:
    """In the log itself, too: in a write to a pipe that nobody reads it holds the log's lock."""
    program = f"{place}\n{STUCK}"
    with subprocess.Popen([sys.executable, "-c", program], cwd=HOME, stdout=subprocess.PIPE, text=True) as stuck:
        assert stuck.stdout is not None
        child = int(stuck.stdout.readline())
        assert ends_within_five_seconds(stuck, signal.SIGTERM)
    assert stuck.returncode == 128 + signal.SIGTERM
    wait_for(lambda: not command_of(child))


def test_sigterm_before_it_begins_to_watch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOEVAL_TEST", str(project))
    beating = project / "out" / "heartbeat.json"
    with started(project, fresh=True) as daemon:
        wait_for(beating.exists)
        assert json.loads(beating.read_text())["state"] == "starting"
        assert ends_within_five_seconds(daemon, signal.SIGTERM)
        assert daemon.stderr is not None and "evaluator.py: stopped" in daemon.stderr.read()
    assert daemon.returncode == 128 + signal.SIGTERM
    wait_for(lambda: not left_of(project))  # what was killed takes a moment to let go of its memory


def test_sighup_takes_what_can_change_and_nothing_is_evaluated_twice(models: Path, project: Path) -> None:
    config, told = project / "evaluator.yaml", Told(project)
    deliver(models, project, 100)
    with started(project) as daemon:
        wait_for(lambda: states(project).get(100) == "recorded")
        before = scores(project)

        config.write_text(CONFIG.replace("model_name", "modelname"))
        told.after(daemon, "the configuration is wrong, the old one stays")
        assert any("did you mean 'model_name'?" in line for line in log_lines(project))

        config.write_text(CONFIG.replace("wandb: {mode: offline}", "wandb: {mode: disabled}") + "  order: bisect\n")
        told.after(daemon, "read again: tiny-gpt2: order; tiny-gpt2: wandb")

        config.write_text(config.read_text().replace("work_dir: out", "work_dir: elsewhere"))
        told.after(daemon, "auto_eval.work_dir cannot change without a restart")

        (project / "two.py").write_text((project / "two.py").read_text().replace("'second')", "'second', 'third')"))
        config.write_text(config.read_text().replace("work_dir: elsewhere", "work_dir: out"))
        told.after(daemon, "read again: tiny-gpt2: tasks")
        wait_for(lambda: len(scores(project)) == 3 and states(project).get(100) == "recorded")

        deliver(models, project, 300)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    after = scores(project)
    assert {row[1] for row in after} == {"first", "second", "third"} and len(after) == 6
    assert [row for row in after if row[0] == 100 and row[1] != "third"] == before
    assert len(turns(project)) == 3  # 100, 100 for the new task, 300
    assert not (project / "elsewhere").exists()


class Told:
    """Sends SIGHUP and waits for what the log says of it."""

    def __init__(self, project: Path):
        self._project = project

    def after(self, daemon: subprocess.Popen[str], text: str) -> None:
        already = len(log_lines(self._project))
        daemon.send_signal(signal.SIGHUP)
        wait_for(self._says(text, already))

    def _says(self, text: str, already: int) -> Callable[[], bool]:
        return lambda: any(text in line for line in log_lines(self._project)[already:])


def test_status_tells_a_daemon_that_is_gone(project: Path) -> None:
    def status() -> str:
        told = run(project, "--status")
        assert told.returncode == 0, told.stderr
        return told.stdout

    beating = project / "out" / "heartbeat.json"
    with started(project) as daemon:
        wait_for(lambda: beating.exists() and json.loads(beating.read_text())["state"] == "idle")
        assert f"daemon: process {daemon.pid} on host {socket.gethostname()}: idle, last sign of life" in status()
        daemon.kill()
        daemon.wait()
    assert "daemon: no sign of life since" in status() and "the process is gone" in status()
