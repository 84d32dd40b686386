"""One task of a job array, on whatever machine the queue starts it:

    python -m autoeval.runners.array_task ARRAY.json NUMBER

ARRAY.json has ``tasks``, each with ``command`` (a list of words), ``log`` and ``record``; a command that begins with
``python``, the interpreter of the submitting machine, is run by the one that runs this. The record is written when the
command has ended: its exit code, and where and when it ran. The job ends with the command's own code. With
AUTOEVAL_ENDS_WITH_INPUT in the environment it ends, and the command with it, when its standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from autoeval.tasks import ENDS_WITH_INPUT
from recorder.files import write_json

GRACE_SECONDS = 20.0  # after SIGTERM; a queue's own patience may be shorter


def run(array: Path, number: int) -> int:
    """Run task ``number``; its exit code as a shell has it (128 + n after signal n)."""
    content = json.loads(array.read_text(encoding="utf-8"))
    task = content["tasks"][number]
    command = list(task["command"])
    if command[0] == content.get("python"):  # this machine's own, which a container may have elsewhere
        command[0] = sys.executable
    log, record = Path(task["log"]), Path(task["record"])
    log.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # of an earlier start: a requeued job keeps its id and its number
    started = time.time()
    process: subprocess.Popen[bytes] | None = None
    signalled: list[int] = []

    def end(signum: int) -> None:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)

    def pass_on(signum: int, _frame: Any) -> None:
        signalled.append(signum)
        end(signal.SIGTERM)
        signal.alarm(int(GRACE_SECONDS))

    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_of_signal, pass_on)
    signal.signal(signal.SIGALRM, lambda _signum, _frame: end(signal.SIGKILL))
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            # A pipe that nobody writes: it closes when this process dies, whatever kills it, and the command ends.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, ENDS_WITH_INPUT: "1"},
        )
        if signalled:  # before there was anybody to pass it on to
            end(signal.SIGTERM)
        if os.environ.get(ENDS_WITH_INPUT):
            threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
        code = process.wait()
    ended = {
        "code": code,
        "signal": signalled[0] if signalled else None,
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "started": started,
        "ended": time.time(),
    }
    write_json(record, ended)
    return code if code >= 0 else 128 - code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.read(0, 1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # then ``run`` writes the record and ends


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    return run(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
