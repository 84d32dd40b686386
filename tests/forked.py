"""Processes of our own code that begin where their imports have ended: forked from one that has made them once.

Importing torch, transformers and Megatron takes ten seconds of processor time, what the tests let such a process do often
a tenth of one. What a program's start shows, and that it imports what it needs, is tested with the program itself.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[1]
HEAVY = ["torch.distributed.checkpoint", "transformers.models.auto.modeling_auto", "tests.megatron_imported"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run(main: Callable[..., int], *arguments: Any, directory: Path, seconds: float = 540.0) -> Ended:
    """``sys.exit(main(*arguments))`` in a process of its own; what it says is kept in ``directory`` meanwhile."""
    out, err = directory / "forked.out", directory / "forked.err"
    process = start(main, *arguments, output=out, errors=err)
    process.join(seconds)
    assert process.exitcode is not None, f"{main.__module__} does not end"
    ended = Ended(process.exitcode, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return ended


def start(
    main: Callable[..., int | None], *arguments: Any, output: Path, errors: Path | None = None, **environment: str
) -> BaseProcess:
    """``main`` must be a module's own; without ``errors`` these are written to ``output`` too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with pytest.MonkeyPatch.context() as patch:  # the server imports by what it finds in its environment
        patch.setenv("PYTHONPATH", str(HOME))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    files = [str(output), str(errors or output)]
    process = context.Process(target=_run, args=(main, arguments, files, {**os.environ, **environment}))
    process.start()
    return process


def finish(processes: Sequence[BaseProcess], outputs: Sequence[Path], seconds: float = 540.0) -> None:
    """Wait for all; what they wrote is told when one has failed."""
    try:
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            process.kill()  # those that wait for one that failed
    for process in processes:
        process.join()
    said = "\n".join(output.read_text(errors="replace")[-3000:] for output in outputs if output.exists())
    assert all(process.exitcode == 0 for process in processes), said


def _run(
    main: Callable[..., int | None], arguments: Sequence[Any], files: Sequence[str], variables: dict[str, str]
) -> None:
    for number, file in enumerate(files, start=1):
        with Path(file).open("ab") as stream:
            os.dup2(stream.fileno(), number)
    sys.modules["__main__"] = type(sys)("__main__")  # not pytest's, which processes of this one would import again
    os.environ.clear()
    os.environ.update(variables)
    warnings.simplefilter("ignore")
    sys.exit(main(*arguments))
