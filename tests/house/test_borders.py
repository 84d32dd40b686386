"""Imports point one way: read from the source, so that a border crossed inside a function is seen too."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pace import Pace

HOME = Path(__file__).resolve().parents[2]

# What each room of autoeval may import, besides itself, the standard library and packages from the index.
MAY_IMPORT = {
    "storage": {"causes"},
    "checkpoints": {"storage"},
    "convert": {"checkpoints"},
    "models": {"storage"},
    "datasets": set(),
    "diagnosis": set(),
    "intents": set(),
    "openicl": {"models", "datasets"},
    "offline": set(),
    "helm": {"causes", "importing", "models", "offline"},
    "tasks": {
        "importing",
        "log_files",
        "storage",
        "checkpoints",
        "convert",
        "diagnosis",
        "models",
        "datasets",
        "openicl",
        "helm",
        "offline",
    },
    "runners": {"tasks", "datasets", "log_files"},
    "doctor": {
        *("config", "heartbeat", "location", "storage", "planning", "runner_sections", "yaml_file"),
        *("checkpoints", "convert", "helm", "offline", "openicl", "runners", "tasks"),
    },
    "partitioners": {"datasets"},
    "summarizers": {"tasks", "datasets"},
    "model_eval": {
        "tasks",
        "datasets",
        "openicl",
        "models",
        "convert",
        "checkpoints",
        "eval_output",
        "estimates",
        "offline",
    },
    "run": {"tasks", "datasets", "openicl", "partitioners", "runners", "summarizers"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("a relative import")
    return found


def test_the_recorder_stands_on_the_ground() -> None:
    for path in (HOME / "recorder").rglob("*.py"):
        assert not {name for name in imports_of(path) if name.split(".")[0] in ("autoeval", "demos")}, path


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_earlier_rooms(room: str) -> None:
    files = list((HOME / "autoeval" / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports_of(path):
            parts = name.split(".")
            assert name != "a relative import", path
            assert parts[0] != "demos", path
            if parts[0] == "autoeval" and len(parts) > 1:
                assert parts[1] in {room, "__version__"} | MAY_IMPORT[room], f"{path} imports {name}"


def test_every_room_is_on_the_list() -> None:
    rooms = {path.parent.name for path in (HOME / "autoeval").glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)


def test_the_doors_and_the_watch_room_load_nothing_heavy() -> None:
    code = (
        "import sys; import autoeval.checkpoints, autoeval.daemon, autoeval.commands, recorder.ledger;"
        "print(sorted({'torch','transformers','helm','wandb','plotly','pandas','numpy','scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "evaluator.py", "--help"], cwd=HOME, capture_output=True, check=True)
        return time.monotonic() - started

    with Pace() as pace:
        taken = min(seconds() for _ in range(5))
    assert taken < pace.takes(0.5)


def test_files_stay_readable() -> None:
    long = [
        f"{path.relative_to(HOME)}: {lines}"
        for folder in ("autoeval", "recorder", "demos")
        for path in (HOME / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    ]
    assert not long
