"""LocalRunner: slots, tries, and that nothing outlives it. Tasks are small programs that need no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from autoeval.run.commands import why_missing
from autoeval.runners import build_runner
from autoeval.runners.local import LocalRunner, visible_gpus
from autoeval.runners.outcome import Outcome
from tests.run.conftest import REPOSITORY
from tests.run.programs import Program
from tests.waiting import wait_for


def launch(runner: LocalRunner, tasks: list[Program], directory: Path) -> list[bool]:
    outcomes = runner.launch(tasks, [directory / f"{number}.json" for number in range(len(tasks))])
    return [outcome.ok for outcome in outcomes]


def test_outcomes_logs_and_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-for-tasks")
    tasks = [
        Program(tmp_path, "good", "print('hello', os.environ.get('WANDB_API_KEY'), os.environ['OURS']); out.touch()"),
        Program(
            tmp_path,
            "second",
            "n=out.with_suffix('.n'); n.exists() and out.touch(); n.touch(); sys.exit(not out.exists())",
        ),
        Program(tmp_path, "bad", "print('why'); sys.exit(1)"),
        Program(tmp_path, "input", "print('wrong input'); sys.exit(2)"),
        Program(tmp_path, "killed", "os.kill(os.getpid(), 9)"),
        Program(tmp_path, "empty", "pass"),
    ]
    runner = LocalRunner(max_num_workers=2, retry=1, environment={"OURS": "x"})
    outcomes = runner.launch(tasks, [tmp_path / f"{number}.json" for number in range(6)])
    assert [(outcome.ok, outcome.code, outcome.tries) for outcome in outcomes] == [
        (True, 0, 1),
        (True, 0, 2),
        (False, 1, 2),
        (False, 2, 1),  # another try cannot help
        (False, -9, 2),
        (False, 0, 2),
    ]
    assert outcomes[0].tail() == ["hello None x"]
    assert outcomes[2].tail() == ["why", "why"] and "failed with code 1 (after 2 tries)" in outcomes[2].reason
    assert "SIGKILL" in outcomes[4].reason and "is not there" in outcomes[5].reason
    assert (tmp_path / "logs" / "good" / "d.out").exists() and (tmp_path / "0.json").exists()


def test_gpus_are_dealt_out_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    # Each says which GPU it has, and holds it until four files say that four tasks are running at once.
    code = """
        (out.parent.parent / f'on-{out.parent.name}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])
        end = time.monotonic() + 90
        while len(list(out.parent.parent.glob('on-*'))) < 4 and time.monotonic() < end:
            time.sleep(0.02)
        out.touch()
    """
    tasks = [Program(tmp_path, f"t{number}", code, gpus=1) for number in range(4)]
    assert all(launch(LocalRunner(max_num_workers=4, max_workers_per_gpu=2), tasks, tmp_path))
    assert sorted((tmp_path / "out" / f"on-t{n}").read_text() for n in range(4)) == ["3", "3", "5", "5"]

    runner = LocalRunner(max_num_workers=2)
    failing = [Program(tmp_path, f"f{number}", "sys.exit(2)", gpus=2) for number in range(3)]
    assert launch(runner, failing, tmp_path) == [False] * 3  # a lost slot would hang here
    both = Program(tmp_path, "both", "out.write_text(os.environ['CUDA_VISIBLE_DEVICES'])", gpus=2)
    none = Program(tmp_path, "none", "out.write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
    assert all(launch(runner, [both, none], tmp_path))
    assert both.get_output_paths()[0].read_text() == "3,5" and none.get_output_paths()[0].read_text() == ""
    with pytest.raises(ValueError, match="wants 3 GPUs; there are 2"):
        launch(runner, [Program(tmp_path, "three", "", gpus=3)], tmp_path)


def test_without_gpus_tasks_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch(LocalRunner(), [Program(tmp_path, "t", "out.touch()", gpus=8)], tmp_path) == [True]


def test_workers_are_as_many_as_asked_for_whatever_the_tasks_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that want as many GPUs are one array; the workers are those of all arrays."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code = """
        (out.parent.parent / 'busy').mkdir()
        time.sleep(0.1)
        (out.parent.parent / 'busy').rmdir()
        out.touch()
    """
    tasks = [Program(tmp_path, f"t{number}", code, gpus=number % 3) for number in range(4)]
    assert launch(LocalRunner(), tasks, tmp_path) == [True] * 4
    assert not (tmp_path / "queue").exists()  # nothing of it is left among the task files


def test_which_gpus_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("0,2", ["0", "2"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("GPU-ab", ["GPU-ab"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == expected


def test_an_exception_ends_the_others(tmp_path: Path) -> None:
    long = Program(tmp_path, "long", "(out.parent / 'pid').write_text(str(os.getpid())); time.sleep(600)")
    runner = LocalRunner()

    def interrupt() -> None:
        wait_for(
            lambda: (
                (tmp_path / "out" / "long" / "pid").exists() and (tmp_path / "out" / "long" / "pid").read_text() != ""
            )
        )
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch(runner, [long, Program(tmp_path, "later", "out.touch()")], tmp_path)
    thread.join()
    assert time.monotonic() - started < 90
    assert not psutil.pid_exists(int((tmp_path / "out" / "long" / "pid").read_text()))
    assert not (tmp_path / "out" / "later").exists()


def test_tasks_end_when_the_runner_is_killed(tmp_path: Path) -> None:
    """The task here is the real entry point, made to wait; nobody has a chance to end it in order."""
    (tmp_path / "d.jsonl").write_text("")
    code = f"""
import os, sys, pathlib
sys.path.insert(0, {str(REPOSITORY)!r})
from autoeval.run.commands import why_missing
from autoeval.runners.local import LocalRunner
from tests.run.programs import Program
wait = '''
from autoeval.tasks import openicl
class Waits(openicl.OpenICLEvalTask):
    def run(self):
        out.with_suffix('.pid').write_text(str(os.getpid()))
        time.sleep(600)
        return 0
sys.exit(openicl.main(Waits, [{str(tmp_path / "c.json")!r}]))
'''
LocalRunner().launch([Program(pathlib.Path({str(tmp_path)!r}), "t", wait)], [pathlib.Path({str(tmp_path / "c.json")!r})])
"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    pid = tmp_path / "out" / "t" / "d.pid"
    try:
        wait_for(lambda: pid.exists() and pid.read_text() != "")
    finally:
        runner.kill()
        runner.wait()
    wait_for(lambda: not psutil.pid_exists(int(pid.read_text())))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="max_num_workers is 0"):
        build_runner({"type": "LocalRunner", "max_num_workers": 0})
    with pytest.raises(ValueError, match="unexpected keyword argument 'max_workers'"):
        build_runner({"type": "LocalRunner", "max_workers": 2})
    task = Program(Path("w"), "t", "pass")
    assert task.get_command("c.json", "srun -p x {task_cmd}").startswith(f"srun -p x {sys.executable} -c ")


def test_why_an_output_is_missing_is_found_anywhere_in_the_log(tmp_path: Path) -> None:
    """The datasets after it write many lines more; a progress bar is the line of its last state."""
    log = tmp_path / "d.out"
    later = "".join(f"d{number}: 2 of 2 items\n" for number in range(30))
    log.write_text(f"\r 0%\r 50%\r100%\n12:00:00 ERROR autoeval.openicl: m/d: the file is missing\n{later}")
    task = Program(tmp_path, "m", "")
    outcome = Outcome(task, 2, 1, log, (task.get_output_paths()[0],))
    assert why_missing(outcome, outcome.missing[0]) == "failed: the file is missing"
    assert outcome.lines()[0] == "100%" and outcome.tail() == outcome.lines()[-12:]
