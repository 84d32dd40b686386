"""A queue of this machine in a directory of its own, and tasks that are small programs."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil

from autoeval.runners.jobs import JobArray, Resources
from autoeval.runners.local_queue import LocalQueue
from autoeval.runners.processes import Identity, from_json
from tests.waiting import wait_for

BEGIN = (
    "import json, os, pathlib, signal, subprocess, sys, time; here = pathlib.Path(sys.argv[1]); number = sys.argv[2]"
)

# What the programs of several tests do: ignore SIGTERM with a child that does too; wait for a file.
STUBBORN = """
    import multiprocessing
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    apart = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                             start_new_session=True)  # not in the group
    lost = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!"], stdout=subprocess.PIPE, start_new_session=True, text=True)
    orphan = lost.stdout.readline().strip()
    (here / "pids").write_text(f"{os.getpid()} {apart.pid} {orphan}")
"""
GATED = "(here / f'up-{number}').write_text(str(os.getpid()))\nwhile not (here / 'go').exists(): time.sleep(0.05)"


class World:
    """A queue in a directory, and tasks that are small Python programs with ``here`` and ``number`` defined."""

    def __init__(self, directory: Path) -> None:
        self.here = directory / "out"
        self.here.mkdir()
        self.directory = directory / "queue"
        self._queues: list[LocalQueue] = []
        self._jobs: set[str] = set()

    def queue(self, **options: Any) -> LocalQueue:
        self._queues.append(LocalQueue(self.directory, **{"gpus": (), "cpus": 4, "grace_seconds": 0.5, **options}))
        return self._queues[-1]

    def array(self, key: str, code: str, *, size: int = 1, at_once: int = 8, **resources: Any) -> JobArray:
        self._jobs.add(key)
        command = [sys.executable, "-c", f"{BEGIN}\n{textwrap.dedent(code)}", str(self.here)]
        return JobArray(key, key, command, size, Resources(**resources), self.here / f"{key}.log", at_once)

    def kept(self, job: str, number: int = 0) -> dict[str, Any]:
        content = json.loads((self.directory / job / f"{number}.json").read_text())
        return dict(content)

    def supervisor(self, job: str) -> Identity:
        return from_json(json.loads((self.directory / job / "supervisor.json").read_text()))

    def read(self, name: str) -> str:
        """What a task has written, once it has."""
        file = self.here / name
        wait_for(lambda: file.exists() and file.read_text() != "")
        return file.read_text()

    def up(self, job: str, *numbers: int) -> list[int]:
        """The pids of these tasks of ``GATED``, once they run and their keepers have written that down."""
        pids = [int(self.read(f"up-{number}")) for number in numbers]
        wait_for(lambda: all(self.kept(job, number)["name"] != "WAITING" for number in numbers))
        return pids

    def close(self) -> None:
        queue = LocalQueue(self.directory, gpus=())
        jobs = {job: 1 for job in self._jobs if queue.find(job)}
        queue.cancel(jobs)
        try:
            for one in self._queues:
                over(one, jobs)
        finally:  # after a test that has failed
            for process in psutil.process_iter(["cmdline"]):
                if str(self.here.parent) in " ".join(process.info["cmdline"] or ()):
                    process.kill()


def over(queue: LocalQueue, jobs: dict[str, int], seconds: float = 90.0) -> dict[str, list[str]]:
    """The names of all ends, once there are no others."""
    deadline = time.monotonic() + seconds
    while True:
        states = queue.poll(jobs)
        if all(state.over for found in states.values() for state in found):
            return {job: [state.name or state.kind for state in found] for job, found in states.items()}
        assert time.monotonic() < deadline, states
        queue.wait(deadline - time.monotonic())
