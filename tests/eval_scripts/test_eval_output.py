"""The JSON answer of the eval scripts: on standard output alone, also when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, sys, time
from autoeval.eval_output import ArgumentParser, ScriptError, run_script
parser = ArgumentParser(prog="try.py")
parser.add_argument("kind")
def work(options):
    print("a library chats")
    os.system("echo a child chats")
    if options.kind == "value":
        raise ValueError("line 3: expected a number")
    if options.kind == "script":
        raise ScriptError("model does not load", 3)
    if options.kind == "bug":
        return 1 / 0
    if options.kind == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    if options.kind == "swallow":
        try:
            print("asleep", flush=True)
            time.sleep(60)
        except BaseException:
            pass
    return "完成", {"x": float("nan"), "y": [1.5, float("inf")]}
sys.exit(run_script(parser, work))
"""


def run(*arguments: str) -> tuple[int, dict, str]:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True)
    return done.returncode, json.loads(done.stdout.decode("utf-8")), done.stderr.decode("utf-8")


def test_only_the_answer_is_on_standard_output() -> None:
    status, answer, errors = run("good")
    assert (status, answer) == (0, {"code": 0, "msg": "完成", "data": {"x": None, "y": [1.5, None]}})
    assert "a library chats" in errors and "a child chats" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["value"], 2, "line 3: expected a number"),
        (["script"], 3, "model does not load"),
        (["bug"], 1, "ZeroDivisionError: division by zero"),
        ([], 2, "the following arguments are required: kind (usage: try.py [-h] kind)"),
    ],
)
def test_a_failure_is_answered_in_the_same_shape(arguments: list[str], code: int, text: str) -> None:
    status, answer, errors = run(*arguments)
    assert (status, answer) == (code, {"code": code, "msg": text, "data": {}})
    assert ("Traceback" in errors) == (arguments == ["bug"])


@pytest.mark.parametrize("kind", ["sleep", "swallow"])  # a library's import may swallow it
def test_interrupted_is_130(kind: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(HOME)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == b"asleep":
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert json.loads(output) == {"code": 130, "msg": "interrupted", "data": {}}
