"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoeval.log_files import LogLimits, own_log, rotate_if_large
from autoeval.tasks.plan import EvaluationPlan

HOME = Path(__file__).resolve().parents[2]
WORKER = (sys.executable, "-m", "autoeval.tasks.worker")

# Publishing is the daemon's business alone: a task needs none of these, so none can leak through one.
_SECRET = re.compile(
    r"WANDB_(API_KEY|IDENTITY_TOKEN.*)|(LARK|FEISHU|SLACK)_.*|.*_WEBHOOK(_.*)?|AUTOEVAL_(SERVE_TOKEN|MESSAGES)"
)


def worker_environment() -> dict[str, str]:
    """This process's environment without publishing credentials, and with the repository importable.

    A library in a task that would log to W&B by itself finds it disabled: it would have the key of ``~/.netrc``.
    """
    environment = {key: value for key, value in os.environ.items() if not _SECRET.fullmatch(key)}
    environment["WANDB_MODE"] = "disabled"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HOME), environment.get("PYTHONPATH", "")]))
    return environment


class LocalWorker:
    """One long-lived worker process; its events arrive at ``on_event`` from a thread of this object.

    After the process has ended, for whatever reason, one last event ``{"event": "exited", "returncode": n}`` arrives.
    """

    def __init__(
        self, on_event: Callable[[LocalWorker, dict[str, Any]], None], log: Path, limits: LogLimits | None = None
    ):
        limits = limits or LogLimits()
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate_if_large(log, limits)
        with log.open("ab") as stderr:
            # A session of its own: Ctrl-C in the terminal reaches the daemon, which then ends the worker in order.
            self._process = subprocess.Popen(
                WORKER,
                cwd=HOME,
                env={**worker_environment(), **own_log(log, limits)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        self.log = log
        self._on_event = on_event
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, plan: Path) -> None:
        """Hand over a plan file. A worker that has died meanwhile says so by its ``exited`` event."""
        self._order({"evaluate": str(plan)})

    def convert_ahead(self, plan: EvaluationPlan) -> None:
        """Let the checkpoint of ``plan`` be converted while another one is evaluated."""
        self._order({"convert": asdict(plan)})

    def import_helm(self) -> None:
        """Let HELM be imported, which takes seconds, before its first task's turn: tasks of it are to come."""
        self._order({"import": "helm"})

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def close(self, grace_seconds: float = 3.0) -> None:
        """End the process: closing its input asks, SIGKILL after ``grace_seconds`` insists."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # whatever it had started
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a kill
                self._on_event(self, json.loads(line))
        self._on_event(self, {"event": "exited", "returncode": self._process.wait()})


class WorkerDied(ValueError):
    """A process was killed before it answered: that says nothing of the plan, and it may be asked again."""


@dataclass(frozen=True)
class TaskList:
    """``tasks``: (name, version) of each. By name, ``sizes``: what it may cost, in a unit of all tasks' own,
    ``families``: the same for tasks that share prompts, and ``most_shares``: in how many it may be evaluated."""

    tasks: tuple[tuple[str, str], ...]
    sizes: Mapping[str, float] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    most_shares: Mapping[str, int] = field(default_factory=dict)


_LISTED: dict[str, TaskList] = {}  # by task plan, as this process has found it out last


def last_listed(task_plan: dict[str, Any]) -> TaskList:
    """What ``list_tasks`` has last answered in this process; no tasks when it was never asked."""
    return _LISTED.get(json.dumps(task_plan, sort_keys=True), TaskList(()))


def ask_tasks(task_plan: dict[str, Any], timeout_seconds: float = 300.0) -> list[tuple[str, str]]:
    """The (name, version) of each task; otherwise as ``list_tasks``."""
    return list(list_tasks(task_plan, timeout_seconds).tasks)


def list_tasks(task_plan: dict[str, Any], timeout_seconds: float = 300.0) -> TaskList:
    """The tasks of a task plan, found out in a short-lived worker process.

    Raises ``ValueError`` with the worker's message when the plan cannot be loaded, ``WorkerDied`` when a signal ended it.
    """
    try:
        answer = subprocess.run(
            [*WORKER, "--list"],
            cwd=HOME,
            env={**worker_environment(), "AUTOEVAL_LOG_LEVEL": "ERROR"},
            input=json.dumps(task_plan),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the tasks could not be loaded within {timeout_seconds:.0f} s") from None
    for line in answer.stdout.splitlines():
        event = json.loads(line)
        if event["event"] == "tasks":
            tasks = tuple((name, version) for name, version in event["tasks"])
            listed = TaskList(tasks, event["sizes"], event["families"], event["most_shares"])
            _LISTED[json.dumps(task_plan, sort_keys=True)] = listed
            return listed
        raise ValueError(event["error"])
    if answer.returncode < 0:
        name = signal.Signals(-answer.returncode).name
        raise WorkerDied(f"the process that loads the tasks was ended by {name} before it answered")
    tail = "\n".join(answer.stderr.splitlines()[-5:])
    raise ValueError(f"the worker process ended with code {answer.returncode} before it answered:\n{tail}")
