"""The daemon's processes, made by fork instead of a fresh Python: a chaos test needs thousands of them.

Importing torch, wandb and plotly takes ten times as long as what a tiny model has to compute. So one process (``Zygote``)
imports them, and each daemon is forked from it. A daemon's own children (worker, views, publisher) are forked, too, by
a helper process of that daemon (``_Helper``) with CLONE_PARENT: they are the daemon's own children, as with exec, in
sessions of their own, with its pipes, and without anything that it had opened. What runs in them is the programs' own
``main``, unchanged but for the waiting times in ``_shorten``. The W&B client's service is a program that is really
started.

Each process may have a fate: at its n-th operation on files (opening to write, renaming, removing, linking, making a
directory, the two sides of a COMMIT) it gets a signal from itself. Operations are counted by an audit hook, so a fate
hits between any two steps of a program, where a random time rarely would.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import platform
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.preloaded import PUBLISHER

HOME = Path(__file__).resolve().parents[2]
PRELOADED = (
    "torch",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "autoeval.commands",
    "autoeval.daemon",
    "autoeval.convert.conversion",
    "autoeval.models.hf",
    "autoeval.tasks.worker",
    "autoeval.tasks.icl",
    "autoeval.tasks.together",
    "autoeval.status",
    "autoeval.openicl.dense_retrievers",
    "mmengine.config",
    "plotly.offline",
    "apscheduler.triggers.interval",
    "evaluator",
    "autoeval.diagnosis.follow",
    "apscheduler.schedulers.background",
    "watchdog.observers",
    "psutil",
    "tabulate",
    *PUBLISHER,
    "recorder.report.page",
    "recorder.wandb_publisher",
)
ROLES = ("daemon", "lister", "worker", "views", "publisher")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_COUNTED = frozenset(
    {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move"}
)
HELPER = "chaos-helper"  # no process of the daemon's: it is spared
_CLONE_PARENT = 0x00008000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
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


def why_not() -> str | None:
    """Why processes cannot be made this way here."""
    if platform.machine() not in _SYS_CLONE or not sys.platform.startswith("linux"):
        return "CLONE_PARENT is known here for Linux on x86-64 and ARM64 only"
    return None


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
    environment = dict(os.environ, PYTHONPATH=str(HOME), OMP_NUM_THREADS="1", WANDB_ERROR_REPORTING="false")
    library = next((path for path in LIBFAKETIME if Path(path).exists()), None) if faketime else None
    return environment if library is None else environment | FAKETIME | {"LD_PRELOAD": library}


def has_faketime() -> bool:
    return "libfaketime" in os.environ.get("LD_PRELOAD", "")


def preload() -> None:
    if has_faketime():
        time.sleep = _sleep
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each forked process would write to, and so copy, every object in the first collection


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
    _become(environment, HOME)
    with open(console, "ab") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    helper = _Helper(fates, told)
    subprocess.Popen = type("Forked", (_Forked,), {"helper": helper})  # type: ignore[misc]
    _shorten()
    _await_fate("daemon", fates, 0, told)
    _run(lambda: __import__("evaluator").main(arguments))


def _become(environment: Mapping[str, str], directory: Path | str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)


def _run(main: Any) -> None:
    """Call ``main`` as the interpreter does, and end."""
    code = 1
    try:
        code = main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


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


def _await_fate(role: str, fates: Mapping[str, Sequence[Any]], number: int, told: str) -> None:
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


# Children of the daemon


class _Helper:
    """Forks the daemon's children from a process that has nothing of the daemon's open; it ends with the daemon."""

    def __init__(self, fates: Any, told: str):
        self._lock = threading.Lock()
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            mine.close()
            _help(its, fates, told)
        its.close()
        self._channel = mine

    def fork(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        with self._lock:
            rights = array.array("i", descriptors)
            self._channel.sendmsg(
                [json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
            )
            return int(self._channel.recv(64))


def _help(channel: socket.socket, fates: Any, told: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(15, HELPER.encode(), 0, 0, 0)  # PR_SET_NAME
    born: dict[str, int] = {}
    library = ctypes.PyDLL(None, use_errno=True)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 2**20, 3)
        if not message:
            os._exit(0)
        order = json.loads(message)
        role = _role(order["command"])
        number = born.get(role, 0)
        born[role] = number + 1
        pid = library.syscall(_SYS_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            library.prctl(15, role.encode(), 0, 0, 0)
            try:
                _be_child(order, descriptors, role, fates, number, told)
            finally:
                os._exit(70)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


def _role(command: Sequence[str]) -> str:
    if "--list" in command:
        return "lister"
    if "autoeval.tasks.worker" in command:
        return "worker"
    return "publisher" if "--publish" in command else "views"


def _be_child(
    order: Mapping[str, Any], descriptors: Sequence[int], role: str, fates: Any, number: int, told: str
) -> None:
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 1024)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["session"]:
        os.setsid()
    _become(order["environment"], order["directory"])
    command = order["command"]
    module = command[command.index("-m") + 1]
    sys.argv = [module, *command[command.index("-m") + 2 :]]
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    _await_fate(role, fates, number, told)
    if module == "autoeval.tasks.worker":  # a name of its own, so that it is not what was imported before
        _run(lambda: importlib.import_module(module).main())
    sys.modules.pop(module, None)
    _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True) and 0)


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """``Popen`` for ``python -m MODULE …`` without a new interpreter; any other program is started as ever."""

    helper: _Helper

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        cwd, env, pipes, session = rest[2], rest[3], rest[7:13], rest[18]
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        if not (isinstance(args, (list, tuple)) and args[0] == sys.executable and args[1] == "-m"):
            super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]
            return
        wanted = [p2cread if p2cread != -1 else 0, c2pwrite if c2pwrite != -1 else 1, errwrite if errwrite != -1 else 2]
        order = {
            "command": list(args),
            "environment": dict(os.environ if env is None else env),
            "directory": str(cwd or Path.cwd()),
            "session": bool(session),
        }
        self.pid = self.helper.fork(order, wanted)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
