"""What stays with the tasks of one local job when the process that submitted it is gone:

    python -m autoeval.runners.local_supervisor DIRECTORY

DIRECTORY has ``job.json`` (``LocalJob``). Of each task that may run at a time there is one more process, its keeper: it
waits for slots, starts the task in a session of its own, ends it with all that it has started when its time is over or
somebody cancels it, and writes ``<number>.json``. Nothing here asks again and again: all wait for signals, for the end of
processes, or for a lock.

When the supervisor is killed, keepers go on with what they have and nothing more is started; when a keeper is killed, its
task's input closes and the supervisor ends what is left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from autoeval.runners.processes import Wakeups, adopt_orphans, boot_id, identify, kill_descendants, reap
from autoeval.runners.slots import Capacity, Reservation, Slots, Wanted
from autoeval.tasks import ENDS_WITH_INPUT
from recorder.files import write_json

START_SECONDS = 30.0  # what was submitted longer ago and has not started is taken for lost, and must not start any more
UP, NEWS = b"up\n", b"."


@dataclass(frozen=True)
class LocalJob:
    """An array as its supervisor needs it. Its environment is the supervisor's own and stands in no file.

    ``submitted``: seconds since the machine's start, of which ``boot`` is the id. ``tethered``: it ends with the process
    that submitted it, which holds the other end of the supervisor's input.
    """

    name: str
    command: list[str]
    size: int
    at_once: int
    log: str
    wanted: Wanted
    capacity: Capacity
    slots: str
    limit_seconds: float | None
    grace_seconds: float
    tethered: bool
    host: str
    boot: str
    submitted: float

    def write(self, directory: Path) -> None:
        write_json(directory / "job.json", asdict(self))

    @classmethod
    def read(cls, directory: Path) -> LocalJob:
        content = json.loads((directory / "job.json").read_text(encoding="utf-8"))
        content["wanted"] = Wanted(**content["wanted"])
        content["capacity"] = Capacity(**{**content["capacity"], "gpus": tuple(content["capacity"]["gpus"])})
        return cls(**content)

    @property
    def lost(self) -> bool:
        """Whether it is too late for it to start."""
        return self.boot != boot_id() or since_boot() - self.submitted > START_SECONDS


def since_boot() -> float:
    """Seconds that no setting of a clock changes."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def record_file(directory: Path, number: int) -> Path:
    return directory / f"{number}.json"


def read_record(directory: Path, number: int) -> dict[str, Any] | None:
    """What a task's keeper has written last: ``name``, ``keeper``, once it runs ``task``, ``gpus`` and ``started``, at the
    end ``ended`` and ``code``, and ``again`` when nobody but the end of who submitted it has ended it; ``None`` before it
    has one."""
    try:
        content = json.loads(record_file(directory, number).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dict(content)


def cancel_file(directory: Path, number: int) -> Path:
    """It is there when somebody wants the task to end."""
    return directory / f"{number}.cancel"


def _note(directory: Path, number: int, name: str, **more: Any) -> None:
    """Write a task's state down, and tell whoever submitted it.

    Where it cannot be written (the disk is full, somebody has removed the directory) the task goes on: what counts is
    what it leaves itself, and without a record it is ``gone`` once this process is.
    """
    try:
        write_json(record_file(directory, number), {"name": name, **more})
    except OSError as error:
        print(f"task {number} is {name}: {error}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # nobody listens any more, or there is much to hear already
        os.write(1, NEWS)


class _Supervisor:
    def __init__(self, directory: Path, job: LocalJob) -> None:
        self._directory, self._job = directory, job
        self._pending = deque(range(job.size))
        self._running: dict[int, int] = {}  # the task's number by its keeper's pid
        self._tether = (0,) if job.tethered else ()
        self._wakeups = Wakeups(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def run(self) -> None:
        while True:
            self._look_for_cancelled()
            while self._pending and len(self._running) < self._job.at_once:
                self._start(self._pending.popleft())
            if not self._running:
                return
            arrived = self._wakeups.wait(None, *self._tether)
            reap(self._reaped)
            if arrived & {signal.SIGTERM, signal.SIGINT} or (self._tether and _closed(0)):
                self._tether = ()
                self._end(set(range(self._job.size)))

    def _look_for_cancelled(self) -> None:
        self._end({number for number in range(self._job.size) if cancel_file(self._directory, number).exists()})

    def _end(self, cancelled: set[int]) -> None:
        for keeper, number in self._running.items():
            if number in cancelled:
                os.kill(keeper, signal.SIGTERM)
        for number in cancelled & set(self._pending):
            self._pending.remove(number)
            _note(self._directory, number, "CANCELLED", ended=time.time(), **_why(self._directory, self._job, number))

    def _start(self, number: int) -> None:
        # The child must not lose a signal before it has its own ways to hear of it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        keeper = os.fork()
        if keeper == 0:
            self._wakeups.close()
            _keep(self._directory, self._job, number)
        self._running[keeper] = number
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    def _reaped(self, pid: int, status: int) -> None:
        number = self._running.pop(pid, None)
        if number is None or (code := os.waitstatus_to_exitcode(status)) == 0:
            return
        kill_descendants(self._reaped, but=self._running)  # what it has left became ours
        if "ended" not in (read_record(self._directory, number) or {}):
            _note(self._directory, number, "LOST", reason=f"its keeper ended with {code}", ended=time.time())


class _Cancelled(Exception):
    pass


def _keep(directory: Path, job: LocalJob, number: int) -> NoReturn:
    """The whole life of one task's keeper."""
    code = 1
    try:
        adopt_orphans()
        _Keeper(directory, job, number).keep()
        code = 0
    except BaseException as error:
        _note(directory, number, "FAILED", reason=f"{type(error).__name__}: {error}", ended=time.time())
    finally:
        os._exit(code)


class _Keeper:
    def __init__(self, directory: Path, job: LocalJob, number: int) -> None:
        self._directory, self._job, self._number = directory, job, number
        me = identify(os.getpid())
        assert me is not None
        self._about: dict[str, Any] = {"keeper": me.as_json(), "host": me.host}
        self._status: int | None = None  # the task's wait status
        self._pid = 0

    def keep(self) -> None:
        job = self._job
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _raise_cancelled)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            self._note("WAITING")
            slots = Slots(Path(job.slots), job.capacity)
            with slots.taken(job.wanted, lambda reason: self._note("WAITING", reason=reason)) as reservation:
                wakeups = Wakeups(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
                if cancel_file(self._directory, self._number).exists() or (job.tethered and _closed(0)):
                    raise _Cancelled
                name = self._run(reservation, wakeups)
        except _Cancelled:
            self._about |= _why(self._directory, job, self._number)
            self._note("CANCELLED", ended=time.time())
            return
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        self._note(name or ("FAILED" if code else "COMPLETED"), code=code, ended=time.time())

    def _note(self, name: str, **more: Any) -> None:
        _note(self._directory, self._number, name, **self._about, **more)

    def _run(self, reservation: Reservation, wakeups: Wakeups) -> str:
        """Start the task and stay until nothing of it is left; the name of an end that was not its own."""
        job, tether = self._job, (0,) if self._job.tethered else ()
        environment = {**os.environ, ENDS_WITH_INPUT: "1"}
        if job.capacity.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(reservation.gpus)
        self._about |= {"gpus": list(reservation.gpus), "started": time.time()}
        self._spawn(environment)
        if (task := identify(self._pid)) is not None:
            reservation.held_for(task)
            self._about["task"] = task.as_json()
        self._note("RUNNING")
        deadline = None if job.limit_seconds is None else time.monotonic() + job.limit_seconds
        ended_as = ""
        while True:
            reap(self._reaped)
            if self._status is not None:
                break
            arrived = wakeups.wait(None if deadline is None else deadline - time.monotonic(), *tether)
            over = deadline is not None and time.monotonic() >= deadline
            wanted = bool(arrived & {signal.SIGTERM, signal.SIGINT}) or bool(tether and _closed(0))
            if ended_as and over:
                break
            if not ended_as and (over or wanted):
                ended_as, tether = "CANCELLED" if wanted else "TIMEOUT", ()
                self._about |= _why(self._directory, job, self._number) if wanted else {}
                deadline = time.monotonic() + job.grace_seconds
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGTERM)
        if left := kill_descendants(self._reaped):
            self._about["reason"] = f"processes {left} cannot be killed"
        if self._status is None:
            self._status = signal.SIGKILL  # as good as: it hangs in the kernel
        return ended_as

    def _spawn(self, environment: dict[str, str]) -> None:
        """Its input is a pipe that nobody writes: it closes when this process dies, whatever kills it."""
        log = Path(self._job.log)
        log = log.with_suffix(f".{self._number}{log.suffix}")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # Not waited for by itself: whatever ends is reaped in one place.
            self._process = subprocess.Popen(
                [*self._job.command, str(self._number)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid = self._process.pid

    def _reaped(self, pid: int, status: int) -> None:
        if pid == self._pid:
            self._status = status


def _raise_cancelled(_number: int, _frame: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    raise _Cancelled


def _why(directory: Path, job: LocalJob, number: int) -> dict[str, Any]:
    """For the record of a task that is to end: whether that is nobody's will, but who submitted it has ended."""
    if job.tethered and _closed(0) and not cancel_file(directory, number).exists():
        return {"reason": "who submitted it has ended", "again": True}
    return {}


def _closed(descriptor: int) -> bool:
    """Whether the other end of a pipe that nobody writes is gone."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    job = LocalJob.read(directory)
    if job.lost:
        print(f"{directory}: submitted more than {START_SECONDS:.0f} s ago; not started", file=sys.stderr)
        return 1
    adopt_orphans()
    supervisor = _Supervisor(directory, job)
    me = identify(os.getpid())
    assert me is not None
    write_json(directory / "supervisor.json", me.as_json())
    with contextlib.suppress(OSError):
        os.write(1, UP)
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
