"""``heartbeat.json`` in the work directory: that the daemon is alive, and what it is at, for whoever cannot see its
process: another host, a supervisor, ``--status``.

It is written by the thread that decides, so a daemon that hangs gives no sign of life. It holds ``pid``, ``host``,
``started`` and ``boot`` (as in ``daemon.lock``), ``state``, ``model``, ``iteration``, ``tasks``, ``since`` (of the state) and ``time``
(both Unix seconds).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoeval.runners.processes import Identity, identify

HEARTBEAT = "heartbeat.json"
INTERVAL_SECONDS = 15.0
STARTING_SECONDS = 330.0  # it beats once while the datasets are loaded: ``list_tasks`` gives them five minutes
SILENT_SECONDS = 4 * INTERVAL_SECONDS + 5.0  # then something is wrong: a loop that hangs, a process that is gone


@dataclass(frozen=True)
class Doing:
    """``state`` is one of starting, idle, converting, evaluating, publishing, waiting for disk space, stopping, ended."""

    state: str
    model: str | None = None
    iteration: int | None = None
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beat:
    """What a heartbeat file says; ``age`` in seconds, by the file's own time and this machine's clock."""

    pid: int
    host: str
    started: int
    boot: str
    state: str
    model: str | None
    iteration: int | None
    tasks: tuple[str, ...]
    since: float
    time: float
    age: float

    @property
    def process(self) -> Identity:
        return Identity(self.pid, self.started, self.boot, self.host)

    @property
    def gone(self) -> bool:
        """Whether it can be seen that the process is there no more."""
        return self.process.here and not self.process.alive

    @property
    def silent(self) -> bool:
        """Whether a daemon that should be at work gives no sign of life."""
        if self.state == "ended":
            return False
        if self.gone:
            return True
        return self.age > (STARTING_SECONDS if self.state == "starting" else SILENT_SECONDS)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"silent": self.silent}

    def __str__(self) -> str:
        at = f" {self.model} iteration {self.iteration}" if self.model else ""
        tasks = f" ({', '.join(self.tasks)})" if self.tasks else ""
        who = f"process {self.pid} on host {self.host}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        if self.state == "ended":
            return f"no daemon is at work: {who} ended at {when}, {ago(self.age)} ago"
        if not self.silent:
            return f"{who}: {self.state}{at}{tasks}, last sign of life {ago(self.age)} ago"
        why = "; the process is gone" if self.gone else ""
        return f"no sign of life since {when}, {ago(self.age)} ago: {who} was {self.state}{at}{tasks}{why}"


class Heart:
    """Beats in several work directories. Used by one thread."""

    def __init__(self) -> None:
        self.directories: Sequence[Path] = ()
        self._doing = Doing("starting")
        self._since = time.time()
        self._written: tuple[Doing, tuple[Path, ...]] | None = None
        self._due = 0.0

    def beat(self, doing: Doing) -> bool:
        """Write the files when ``doing`` is news or it is time; whether it was time. A disk that is full keeps nobody
        from working on."""
        now = time.monotonic()
        time_to = now >= self._due
        if doing != self._doing:
            self._doing, self._since = doing, time.time()
        if not time_to and self._written == (doing, tuple(self.directories)):
            return False
        self._written = (doing, tuple(self.directories))
        self._due = now + INTERVAL_SECONDS
        _write(self.directories, self._doing, self._since)
        return time_to

    def due_in(self) -> float:
        return self._due - time.monotonic()


def _write(directories: Iterable[Path], doing: Doing, since: float) -> None:
    try:
        me = identify(os.getpid())
    except OSError:  # no descriptor is left: that must not keep the daemon from ending what it has started
        return
    assert me is not None
    content = (
        json.dumps(me.as_json() | asdict(doing) | {"since": round(since, 3), "time": round(time.time(), 3)}) + "\n"
    )
    for directory in directories:
        # One name for the temporary file: whoever holds the directory's lock writes over what a killed one left. Not
        # synced: after a power failure nobody is alive, whatever the file says.
        temporary = directory / f".{HEARTBEAT}.tmp"
        try:
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(directory / HEARTBEAT)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read_heartbeat(directory: Path) -> Beat | None:
    """``None`` when there is none, or none that can be read."""
    path = directory / HEARTBEAT
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        age = max(0.0, time.time() - path.stat().st_mtime)
        keys = ("pid", "host", "started", "boot", "state", "model", "iteration", "since", "time")
        return Beat(**{key: content[key] for key in keys}, tasks=tuple(content["tasks"]), age=age)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ago(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
