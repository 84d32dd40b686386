"""A runner in a process of its own, to be killed, interrupted, and followed by another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.run.programs import alive
from tests.runners.conftest import REPOSITORY
from tests.waiting import wait_for

_RUN = """
import sys, pathlib, logging
sys.path.insert(0, {repository!r})
logging.basicConfig(level="INFO")
from autoeval.runners import build_runner
from tests.run.programs import Program
here = pathlib.Path({directory!r})
runner = build_runner({options!r})
task = Program(here, "t", "out.with_suffix('.up').write_text(str(os.getpid()))\\n"
    "while not out.with_suffix('.go').exists(): time.sleep(0.05)\\nout.touch()")
runner.settle(here / "c")
if task.get_output_paths()[0].exists():
    sys.exit("it was there")
runner.launch([task], [here / "c" / "0.json"])
"""


class Apart:
    """Runs one task that waits until ``let_go``; first it settles what a former one has left."""

    def __init__(self, options: dict[str, Any], directory: Path) -> None:
        self._out = directory / "out" / "t"
        code = _RUN.format(repository=str(REPOSITORY), directory=str(directory), options=options)
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)

    def pid_of_task(self) -> int:
        """Once it runs."""
        up = self._out / "d.up"
        wait_for(lambda: up.exists() and up.read_text() != "", 180)
        return int(up.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def let_go(self) -> None:
        (self._out / "d.go").touch()

    def said(self, text: str) -> str:
        """What it has said up to a line with ``text``."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"{text!r} is not in:\n{''.join(lines)}")


def after_a_kill_the_next_waits(options: dict[str, Any], directory: Path) -> None:
    """``first`` has been killed; its task still runs."""
    second = Apart(options, directory)
    second.said("of the former process still runs")
    second.let_go()
    assert "it was there" in second.process.communicate(timeout=180)[1]
    assert len(list((directory / "c").glob("*.array.json"))) == 1


def ctrl_c_cancels(process: Apart, signum: int) -> None:
    pid = process.pid_of_task()
    process.process.send_signal(signum)
    said = process.process.communicate(timeout=180)[1]
    assert "cancelling job" in said and "KeyboardInterrupt" in said
    wait_for(lambda: not alive(pid), 60)
