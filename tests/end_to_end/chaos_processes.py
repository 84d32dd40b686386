"""The daemon's processes, made by fork instead of a fresh Python: a chaos test needs thousands of them.

``forked_programs`` says how: one process (``Zygote``) has imported all, each daemon is forked from it, and a daemon's own
children from a helper of that daemon. What runs in them is the programs' own ``main``, unchanged but for the waiting times
in ``_shorten``. The W&B client's service is a program that is really started.

Each process may have a fate: at its n-th operation on files (opening to write, renaming, removing, linking, making a
directory, the two sides of a COMMIT) it gets a signal from itself. Operations are counted by an audit hook, so a fate
hits between any two steps of a program, where a random time rarely would.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.end_to_end import forked_programs
from tests.end_to_end.forked_programs import HOME, become, fork_own_children, run_to_the_end

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_COUNTED = frozenset(
    {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move"}
)
FAKETIME = {
    "FAKETIME_TIMESTAMP_FILE": "/dev/null",
    "FAKETIME_CACHE_DURATION": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "NO_FAKE_STAT": "1",
}
LIBFAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)


class Zygote:
    """Forked from this process, which has imported all (``preload``) and has one thread still. Its daemons become
    children of this process when that adopts orphans."""

    def __init__(self, clock: Path):
        """``clock`` is the file that says how far the daemons' clocks are off (``chaos_family.set_clock``)."""
        self.environment = {name: value for name, value in os.environ.items() if name in FAKETIME}
        self.environment["FAKETIME_TIMESTAMP_FILE"] = str(clock)
        mine, its = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            mine.close()
            os.environ.update(self.environment)
            if not has_faketime():
                _own_clock(clock)
            _serve(its.makefile("rw"))
            os._exit(0)
        its.close()
        self._channel = mine.makefile("rw")
        mine.close()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        console: Path,
        fates: Mapping[str, Sequence[Any]],
        told: Path,
    ) -> int:
        """The process id of a new ``evaluator.py``; ``fates`` by role and order of birth, ``told`` is where they tell
        that they have struck."""
        order = [list(arguments), dict(environment), str(console), dict(fates), str(told)]
        self._channel.write(json.dumps(order) + "\n")
        self._channel.flush()
        return int(self._channel.readline())

    def close(self) -> None:
        self._channel.close()
        os.waitpid(self.pid, 0)


def preload_environment(*, faketime: bool) -> dict[str, str]:
    """Of a process that is to call ``preload``. With ``faketime`` that library, where it is installed, says what time it
    is in there; it costs half as much again."""
    environment = forked_programs.preload_environment()
    library = next((path for path in LIBFAKETIME if Path(path).exists()), None) if faketime else None
    return environment if library is None else environment | FAKETIME | {"LD_PRELOAD": library}


def has_faketime() -> bool:
    return "libfaketime" in os.environ.get("LD_PRELOAD", "")


def preload() -> None:
    if has_faketime():
        time.sleep = _sleep
    forked_programs.preload()


def _serve(channel: Any) -> None:
    for line in channel:
        middle = os.fork()
        if middle == 0:  # ends at once, so that the daemon is nobody's child but the test's
            daemon = os.fork()
            if daemon == 0:
                channel.close()
                _be_daemon(*json.loads(line))
            channel.write(f"{daemon}\n")
            channel.flush()
            os._exit(0)
        os.waitpid(middle, 0)


def _own_clock(file: Path) -> None:
    """Where there is no libfaketime: Python's ``time.time`` alone shows the offset."""
    real, seen = time.time, [0.0, 0.0]

    def now() -> float:
        if time.monotonic() > seen[0]:
            with contextlib.suppress(OSError, ValueError):
                seen[:] = [time.monotonic() + 0.2, float(file.read_text())]
        return real() + seen[1]

    time.time = now


def _sleep(seconds: float) -> None:
    """libfaketime 0.9.10 takes the offset off the absolute times of clock_nanosleep, those of the monotonic clock too."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        select.select((), (), (), left)


def _be_daemon(arguments: list[str], environment: dict[str, str], console: str, fates: Any, told: str) -> None:
    os.setsid()
    become(environment, HOME)
    with open(console, "ab") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    fork_own_children(partial(_await_fate, fates=fates, told=told))
    _shorten()
    _await_fate("daemon", 0, fates, told)
    run_to_the_end(lambda: __import__("evaluator").main(arguments))


def _shorten() -> None:
    """Waiting times, and nothing else."""
    from autoeval import commands
    from autoeval.checkpoints import watch
    from recorder import publishing, wandb_client, wandb_delivery, watchdog

    commands.RESTART_SECONDS = 0.3
    commands.ATTEMPTS = 5
    watch.PENDING_SECONDS = 0.2
    wandb_client.INIT_SECONDS = wandb_client.FINISH_SECONDS = 6.0
    watchdog.STEP_SECONDS, publishing.LOCK_SECONDS = 40.0, 60.0
    publishing.FIRST_WAIT_SECONDS = 0.5
    wandb_delivery.SERVER_SHOWS_AFTER = (0.0, 0.05, 0.2)


# Fates


def _await_fate(role: str, number: int, fates: Mapping[str, Sequence[Any]], told: str) -> None:
    mine = fates.get(role, ())
    fate = mine[number] if number < len(mine) else None
    if fate is None:
        return
    at, signal_name = fate
    left = [int(at)]

    def strike() -> None:
        left[0] -= 1
        if left[0] != 0:
            return
        descriptor = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{role} {signal_name} {os.getpid()}\n".encode())
        os.close(descriptor)
        os.kill(os.getpid(), getattr(signal, f"SIG{signal_name}"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if left[0] <= 0:
            return
        if event in _COUNTED or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            strike()

    sys.addaudithook(hook)
    from recorder.ledger import Ledger

    writing = Ledger._writing

    @contextlib.contextmanager
    def counted(self: Any) -> Iterator[Any]:
        with writing(self) as connection:
            yield connection
            strike()
        strike()

    Ledger._writing = counted  # type: ignore[method-assign]
