"""Our programs in processes that are forked from one that has imported their libraries, instead of from a fresh Python.

Importing torch, transformers, wandb and plotly takes ten times as long as what a tiny model has to compute. So one
process (``ForkServer``; in the chaos tests a ``Zygote``) imports them. Whoever is to start ``python -m MODULE …`` or
``python evaluator.py …`` through it gets a ``Popen`` as ever: the child is his own, in the session that he asked for,
with his pipes, the given environment and directory, and with nothing that he had opened. A daemon's own children
(worker, views, publisher) are made likewise, by a helper process of that daemon; what those start in turn is really
started. What runs in all of them is the programs' own ``main``, unchanged, to the end of the interpreter.

What differs from a start: a worker is ready at once, the command line in ``/proc`` is that of the server, and one process
more, the helper, is a child of the daemon. What is shown by any of these is tested with the program itself.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.preloaded import PUBLISHER

HOME = Path(__file__).resolve().parents[2]
PRELOADED = (
    "torch",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.encoder_decoder",
    "transformers.integrations.mistral",
    "transformers.tokenization_utils_sentencepiece",
    "transformers.tokenization_utils_tokenizers",
    "autoeval.commands",
    "autoeval.daemon",
    "autoeval.convert.conversion",
    "autoeval.models.hf",
    "autoeval.models.in_place",
    "autoeval.models.loading",
    "autoeval.tasks.worker",
    "autoeval.tasks.icl",
    "autoeval.tasks.together",
    "autoeval.status",
    "autoeval.openicl.dense_retrievers",
    "mmengine.config",
    "plotly.animation",
    "plotly.graph_objs.layout._title",
    "plotly.graph_objs.layout._xaxis",
    "plotly.graph_objs.layout._yaxis",
    "plotly.offline",
    "plotly.validator_cache",
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
DAEMON = "evaluator.py"
HELPER = "fork-helper"  # no process of the daemon's: it is spared
_CLONE_PARENT = 0x00008000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_OWN = ("WANDB_", "LARK_", "FEISHU_", "SLACK_", "AWS_", "SLURM_", "AUTOEVAL_")  # a test's, never the server's


def why_not() -> str | None:
    """Why processes cannot be made this way here."""
    if platform.machine() not in _SYS_CLONE or not sys.platform.startswith("linux"):
        return "CLONE_PARENT is known here for Linux on x86-64 and ARM64 only"
    return None


def preload_environment() -> dict[str, str]:
    """Of a process that is to call ``preload``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    environment |= {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "WANDB_ERROR_REPORTING": "false"}
    return environment | {"THP_MEM_ALLOC_ENABLE": "1"}  # as the worker has it before it imports torch


def preload() -> None:
    from autoeval.offline.environment import keep_off_the_hub

    keep_off_the_hub()  # as the worker does before it imports
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each forked process would write to, and so copy, every object in the first collection


class Helper:
    """Has children forked for this process by another one, which has nothing open that this one opens."""

    def __init__(self, channel: socket.socket):
        self._channel, self._lock = channel, threading.Lock()

    def fork(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        with self._lock:
            rights = array.array("i", descriptors)
            self._channel.sendmsg(
                [json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
            )
            answer = self._channel.recv(64)
        if not answer:
            raise RuntimeError("the process that forks has ended; its standard error says why")
        return int(answer)


def help_from_a_fork(prepare: Callable[[str, int], None] | None = None) -> Helper:
    """A helper forked from this process, which must have one thread; it ends with this process.

    ``prepare(role, number)`` is called in each child, before its program, with the number of those born before it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        mine.close()
        try:
            _help(its, prepare)
        finally:
            os._exit(0)
    its.close()
    return Helper(mine)


@functools.cache
def fork_server() -> Helper:
    """This process's one, started when it is first asked for; it ends with this process."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.forked_programs", str(its.fileno())],
            cwd=HOME,
            env=preload_environment(),
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
        )
    return Helper(mine)


@functools.cache
def forking_popen() -> type[subprocess.Popen[Any]]:
    """``subprocess.Popen`` for this process's children; the very class where processes cannot be forked."""
    return subprocess.Popen if why_not() is not None else forked_by(fork_server())


def forked_by(helper: Helper) -> type[subprocess.Popen[Any]]:
    return type("Forked", (_Forked,), {"helper": helper})


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """``Popen`` without a new interpreter for our programs; any other is started as ever."""

    helper: Helper

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        cwd, env, pipes, session = rest[2], rest[3], rest[7:13], rest[18]
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        if not (isinstance(args, (list, tuple)) and args[0] == sys.executable and args[1] in ("-m", DAEMON)):
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


# In the process that forks


def _help(channel: socket.socket, prepare: Callable[[str, int], None] | None) -> None:
    """Fork as it is told, until whoever tells has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(15, HELPER.encode(), 0, 0, 0)  # PR_SET_NAME
    born: dict[str, int] = {}
    library = ctypes.PyDLL(None, use_errno=True)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 2**20, 3)
        if not message:
            return
        order = json.loads(message)
        role = _role(order["command"])
        number = born.get(role, 0)
        born[role] = number + 1
        pid = library.syscall(_SYS_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            library.prctl(15, role.encode(), 0, 0, 0)
            try:
                _be_child(order, descriptors, None if prepare is None else functools.partial(prepare, role, number))
            finally:
                os._exit(70)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


def _role(command: Sequence[str]) -> str:
    if DAEMON in command:
        return "daemon"
    if "--list" in command:
        return "lister"
    if "autoeval.tasks.worker" in command:
        return "worker"
    return "publisher" if "--publish" in command else "views"


def _be_child(order: Mapping[str, Any], descriptors: Sequence[int], prepare: Callable[[], None] | None) -> None:
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 1024)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["session"]:
        os.setsid()
    become(order["environment"], order["directory"])
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    if prepare is not None:
        prepare()
    command = order["command"]
    if command[1] == DAEMON:
        sys.argv = command[1:]
        fork_own_children()
        run_to_the_end(lambda: importlib.import_module("evaluator").main())
    module = command[command.index("-m") + 1]
    sys.argv = [module, *command[command.index("-m") + 2 :]]
    if module == "autoeval.tasks.worker":  # a name of its own, so that it is not what was imported before
        run_to_the_end(lambda: importlib.import_module(module).main())
    sys.modules.pop(module, None)
    run_to_the_end(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True) and 0)


def fork_own_children(prepare: Callable[[str, int], None] | None = None) -> None:
    """From now on this process, which must have one thread, has its children forked. ``prepare``: ``help_from_a_fork``."""
    subprocess.Popen = forked_by(help_from_a_fork(prepare))  # type: ignore[misc]


def become(environment: Mapping[str, str], directory: Path | str) -> None:
    """What a fresh process begins with. The exit functions of imports are the importing process's: one of wandb's
    removes a directory that all use."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)


def run_to_the_end(main: Callable[[], Any]) -> None:
    """Call ``main`` as the interpreter does, and end as it does."""
    code = 1
    try:
        code = main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    from tests.end_to_end import forked_programs  # under the name that others know

    forked_programs.preload()
    forked_programs._help(socket.socket(fileno=int(sys.argv[1])), None)
