"""Tasks that are small programs and need no model, for the tests of what runs tasks."""

from __future__ import annotations

import shlex
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from autoeval.runners import Runner
from autoeval.runners.outcome import Outcome
from autoeval.tasks.openicl import Task

DATASET = {"abbr": "d"}


class Program(Task):
    """Runs Python ``code`` with ``out`` (the output's path) defined."""

    name_prefix = "Program"
    log_subdir = "logs"
    output_subdir = "out"

    def __init__(self, directory: Path, name: str, code: str, gpus: int = 0) -> None:
        model = {"type": "HuggingFace", "abbr": name, "path": "p"}
        super().__init__({"models": [model], "datasets": [[DATASET]], "work_dir": str(directory)})
        self.code, self.gpus = code, gpus

    @property
    def num_gpus(self) -> int:
        return self.gpus

    def get_command(self, cfg_path: Path | str, template: str = "{task_cmd}") -> str:
        begin = f"import os,sys,time,pathlib; out=pathlib.Path({str(self.get_output_paths()[0])!r}); "
        code = begin + "out.parent.mkdir(parents=True, exist_ok=True)\n" + textwrap.dedent(self.code)
        return template.replace("{task_cmd}", shlex.join([sys.executable, "-c", code]))


def launch(runner: Runner, tasks: Sequence[Task], directory: Path) -> list[Outcome]:
    """Run ``tasks``, their configurations in ``directory``."""
    return runner.launch(tasks, [directory / f"{number}.json" for number in range(len(tasks))])


def in_background(function: Callable[[], list[Outcome]]) -> tuple[threading.Thread, list[Outcome]]:
    """The thread, and what is filled once it has ended."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(function()), daemon=True)
    thread.start()
    return thread, outcomes


def alive(pid: int) -> bool:
    """Whether it runs. Where nobody reaps orphans, as in many containers, they stay as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
