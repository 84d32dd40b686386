"""This machine as a queue: process groups with GPUs, CPU slots, memory and time limits, that live on when who submitted
them ends, and are found again by their key.

Every job has a directory, ``<directory>/<key>``, and a supervisor (``local_supervisor``) that writes there how its tasks
fare. A process is only ever taken for the job's own when pid, moment of start, boot and host agree, so after a reboot, or
after a supervisor was killed, what it had is ``gone``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused
from autoeval.runners.local_supervisor import (
    START_SECONDS,
    UP,
    LocalJob,
    cancel_file,
    read_record,
    since_boot,
)
from autoeval.runners.processes import Identity, boot_id, from_json, wait_for_end
from autoeval.runners.slots import Capacity, Wanted
from autoeval.runners.worker_process import worker_environment

GRACE_SECONDS, TETHERED_GRACE_SECONDS = 20.0, 3.0  # between SIGTERM and SIGKILL; somebody waits for the second
KEPT_SECONDS = 7 * 86400.0  # what has ended so long ago is forgotten
_NO_NEWS_SECONDS = 2.0  # of jobs that another process has submitted, only ends are noticed at once
_AGAIN = frozenset({"COMPLETED", "FAILED", "TIMEOUT", "LOST"})  # CANCELLED was somebody's will


class LocalQueue:
    """``directory`` is the queue: all who name it share its slots and find its jobs.

    ``gpus``: ids, by default what ``visible_gpus`` finds; each has ``max_workers_per_gpu`` tasks at most. ``cpus`` slots
    (as many as this process may use) and ``memory_gb`` (the machine's): of them a task takes what it asks for. Where there are no GPUs, tasks that want some run without. ``slots``:
    another directory than the queue's, to share GPUs, CPUs and memory with other queues. With ``tethered`` jobs end with
    this process, whatever ends it.
    """

    arrays = True

    def __init__(
        self,
        directory: Path,
        *,
        gpus: Sequence[str] | None = None,
        max_workers_per_gpu: int = 1,
        cpus: int | None = None,
        memory_gb: float | None = None,
        grace_seconds: float | None = None,
        slots: Path | None = None,
        tethered: bool = False,
    ) -> None:
        self.directory = directory.absolute()
        self.capacity = Capacity(
            tuple(dict.fromkeys(visible_gpus() if gpus is None else gpus)),
            max_workers_per_gpu,
            _cpus() if cpus is None else cpus,
            _machine_memory_gb() if memory_gb is None else memory_gb,
        )
        self._slots = slots.absolute() if slots else self.directory / "slots"
        usual = TETHERED_GRACE_SECONDS if tethered else GRACE_SECONDS
        self._grace_seconds = usual if grace_seconds is None else grace_seconds
        self._tethered = tethered
        self._started: dict[str, subprocess.Popen[bytes]] = {}  # supervisors of this process's own jobs
        self._ended: dict[str, dict[int, JobState]] = {}
        self._live: set[str] = set()  # jobs that were not over when they were last asked about

    def submit(self, array: JobArray) -> str:
        """Its key, which is its id; a key that is there already is not submitted again."""
        if not re.fullmatch(r"[\w.-]+", array.key) or array.key == "slots":
            raise ValueError(f"key {array.key!r}: expected letters, digits, '-', '_' and '.'")
        asked = array.resources
        wanted = Wanted(asked.num_gpus, asked.num_cpus or 0, asked.memory_gb or 0.0)
        if lacking := self.capacity.lacks(wanted):
            raise QueueRefused(f"{array.name} wants {lacking}")
        if not self.capacity.gpus:
            wanted = Wanted(0, wanted.cpus, wanted.memory_gb)
        self._forget_old()
        directory = self.directory / array.key
        if self.find(array.key) is None:
            LocalJob(
                name=array.name,
                command=list(array.command),
                size=array.size,
                at_once=array.at_once,
                log=str(array.log.absolute()),
                wanted=wanted,
                capacity=self.capacity,
                slots=str(self._slots),
                limit_seconds=None if asked.minutes is None else asked.minutes * 60.0,
                grace_seconds=self._grace_seconds,
                tethered=self._tethered,
                host=socket.gethostname(),
                boot=boot_id(),
                submitted=since_boot(),
            ).write(directory)
            try:
                self._started[array.key] = self._supervise(directory, array.environment)
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
        self._live.add(array.key)
        return array.key

    def _supervise(self, directory: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a supervisor and wait until it has written down who it is."""
        log = directory / "supervisor.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "autoeval.runners.local_supervisor", str(directory)],
                env={**worker_environment(), **environment},
                stdin=subprocess.PIPE if self._tethered else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            if not _is_up(process):
                tail = " ".join(log.read_text(errors="replace").split()[-40:])
                raise QueueError(f"the supervisor of {directory.name} did not start: {tail or 'no answer'}")
        except BaseException:  # Ctrl-C, too
            process.terminate()
            _close(process)
            process.kill()
            raise
        return process

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        states = {job: self._job(self.directory / job, size) for job, size in jobs.items()}
        for job, found in states.items():
            if not all(state.over for state in found):
                self._live.add(job)
                continue
            self._live.discard(job)
            if process := self._started.pop(job, None):
                _close(process)
        return states

    def _job(self, directory: Path, size: int) -> list[JobState]:
        try:
            job = LocalJob.read(directory)
        except FileNotFoundError:
            return [JobState("gone", again=True)] * size
        if job.host != socket.gethostname():
            # It may even run. That two do the same does no harm; waiting for a machine that is no more would.
            return [JobState("gone", reason=f"it was started on {job.host}, not here", again=True)] * size
        # Who lives is looked at first: what a process then has not written, it never will.
        supervisor = _identity(directory / "supervisor.json")
        will_start = supervisor.alive if supervisor else not job.lost
        ended = self._ended.setdefault(directory.name, {})  # what has ended stays so
        states = [ended.get(number) or _task(directory, number, will_start) for number in range(size)]
        ended |= {number: state for number, state in enumerate(states) if state.kind == "ended"}
        return states

    def cancel(self, jobs: Iterable[str]) -> None:
        for name in jobs:
            whole = self.find(name) is not None
            job, _, number = (name, "", "") if whole else name.rpartition("_")
            if not whole and not (number.isdecimal() and self.find(job)):
                continue  # it is no job of this queue
            directory = self.directory / job
            with contextlib.suppress(FileNotFoundError):
                for one in range(LocalJob.read(directory).size) if whole else [int(number)]:
                    cancel_file(directory, one).touch()
                    record = read_record(directory, one) or {}
                    if "ended" not in record and "keeper" in record:  # the supervisor may be dead
                        from_json(record["keeper"]).signal(signal.SIGTERM)
                if supervisor := _identity(directory / "supervisor.json"):
                    supervisor.signal(signal.SIGUSR1)

    def find(self, key: str) -> str | None:
        return key if (self.directory / key / "job.json").exists() else None

    def told(self, log: str) -> str | None:
        del log
        return None

    def wait(self, seconds: float) -> None:
        """Until something has changed with a job that was asked about, or the seconds are over."""
        news = [
            process.stdout.fileno() for job, process in self._started.items() if job in self._live and process.stdout
        ]
        others = [one for job in self._live - set(self._started) for one in self._processes(job)]
        wait_for_end(others, min(seconds, _NO_NEWS_SECONDS) if others else seconds, news)
        for process in self._started.values():
            if process.stdout is not None:
                process.stdout.read()

    def _processes(self, job: str) -> list[Identity]:
        directory = self.directory / job
        found = [_identity(directory / "supervisor.json")]
        with contextlib.suppress(FileNotFoundError):
            for number in range(LocalJob.read(directory).size):
                record = read_record(directory, number) or {}
                if "ended" not in record and "keeper" in record:
                    found.append(from_json(record["keeper"]))
        return [one for one in found if one is not None and one.alive]

    def _forget_old(self) -> None:
        for file in self.directory.glob("*/job.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                directory = file.parent
                newest = max(one.stat().st_mtime for one in directory.iterdir())
                if time.time() - newest < KEPT_SECONDS:
                    continue
                if all(state.over for state in self._job(directory, LocalJob.read(directory).size)):
                    shutil.rmtree(directory, ignore_errors=True)


def _task(directory: Path, number: int, will_start: bool) -> JobState:
    record = read_record(directory, number)
    keeper = from_json(record["keeper"]) if record and "keeper" in record else None
    if record is not None and "ended" not in record and keeper is not None and not keeper.alive:
        record = read_record(directory, number)  # it may have ended just now
        assert record is not None
        if "ended" not in record and not will_start:
            _bury(record)
            return JobState("gone", reason="what kept it was killed", again=True)
    if record is None:
        return JobState("waiting", "PENDING") if will_start else JobState("gone", again=True)
    name, reason = str(record["name"]), str(record.get("reason", ""))
    if "ended" in record:
        return JobState("ended", name, reason, name in _AGAIN or bool(record.get("again")))
    return JobState("waiting", "PENDING", reason) if name == "WAITING" else JobState("running", name)


def _bury(record: Mapping[str, Any]) -> None:
    """End what a killed keeper and a killed supervisor have left of a task, so that it does not run twice."""
    if "task" not in record:
        return
    task = from_json(record["task"])
    if task.alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(task.pid, signal.SIGKILL)


def _identity(file: Path) -> Identity | None:
    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _is_up(process: subprocess.Popen[bytes]) -> bool:
    """Whether a new supervisor has said so in time."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    poller = select.poll()
    poller.register(process.stdout, select.POLLIN)
    deadline, said = time.monotonic() + START_SECONDS, b""
    while UP not in said and poller.poll(1000.0 * max(0.0, deadline - time.monotonic())):
        if not (some := process.stdout.read()):
            break
        said += some
    return UP in said


def _close(process: subprocess.Popen[bytes]) -> None:
    """Let go of a supervisor that has nothing more to do."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine_memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def visible_gpus() -> list[str]:
    """Ids from ``CUDA_VISIBLE_DEVICES`` (numbers, or UUIDs as they are), else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [part.strip() for part in visible.split(",") if part.strip()]
        # CUDA itself stops at the first id that is no device.
        stop = next((place for place, part in enumerate(ids) if re.fullmatch(r"-\d+", part)), len(ids))
        return ids[:stop]
    # In a container /proc may be the host's or hidden; the device files are what can be used.
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
