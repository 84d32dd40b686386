"""What the tests of the daemon share: a small project, the daemon as a user runs it, and what it has recorded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from tests.end_to_end.forked_programs import HOME, forking_popen

DATASET = """
two_datasets = [
    dict(
        abbr=name,
        type='JsonlDataset',
        path=r'{directory}/items.jsonl',
        reader_cfg=dict(input_columns=['question', 'A', 'B'], output_column='answer'),
        infer_cfg=dict(
            prompt_template=dict(
                type='PromptTemplate',
                template={{'A': '{{question}} {{A}}', 'B': '{{question}} {{B}}'}},
            ),
            retriever=dict(type='ZeroRetriever'),
            inferencer=dict(type='PPLInferencer'),
        ),
        eval_cfg=dict(evaluator=dict(type='AccEvaluator')),
    )
    for name in ('first', 'second')
]
"""

CONFIG = """
auto_eval:
  project_name: tiny
  model_name: tiny-gpt2
  work_dir: out
  huggingface: {checkpoint_path: checkpoints, token_per_iteration: 0.001}
  icl: {datasets: [./two.py], data_dir: .}
  wandb: {mode: offline}
"""


def make_project(directory: Path, config: str = CONFIG) -> Path:
    """Two tasks of thirty items, a configuration for them, and nothing in ``checkpoints`` yet."""
    items = [
        {"question": f"{a} + {b} =", "A": str(a + b), "B": str(a - b), "answer": "A"}
        for a in range(10, 16)
        for b in range(1, 6)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (directory / "two.py").write_text(DATASET.format(directory=directory))
    (directory / "evaluator.yaml").write_text(config)
    (directory / "checkpoints").mkdir()
    return directory


def command(project: Path, *flags: str) -> list[str]:
    interval = ["--begin-iteration", "100", "--end-iteration", "300", "--iteration-interval", "100"]
    config = str(project / "evaluator.yaml")
    model_type = "huggingface" if "huggingface:" in (project / "evaluator.yaml").read_text() else "megatron"
    return [sys.executable, "evaluator.py", "--config", config, "--model-type", model_type, *interval, *flags]


def run(
    project: Path,
    *flags: str,
    seconds: float = 300.0,
    fresh: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """To its end. ``fresh`` as ``started`` has it; ``environment`` is added to this process's."""
    words, pipe, variables = command(project, *flags), subprocess.PIPE, {**os.environ, **(environment or {})}
    with _popen(fresh)(words, cwd=HOME, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        finally:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


@contextlib.contextmanager
def started(project: Path, *flags: str, fresh: bool = False) -> Iterator[subprocess.Popen[str]]:
    """The daemon: with ``fresh`` as a user starts it, and then its worker imports its libraries before it can begin;
    otherwise forked, as all that it starts (``forked_programs`` says how), and at work at once."""
    with _popen(fresh)(command(project, *flags), cwd=HOME, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """What of our programs this process starts in the block is forked."""
    really, subprocess.Popen = subprocess.Popen, forking_popen()  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = really  # type: ignore[misc]


def _popen(fresh: bool) -> type[subprocess.Popen[str]]:
    return subprocess.Popen if fresh else forking_popen()


def deliver(models: Path, project: Path, *iterations: int) -> None:
    for iteration in iterations:
        shutil.copytree(models / f"checkpoint-{iteration}", project / "checkpoints" / f"checkpoint-{iteration}")


def scores(project: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(project / "out" / "ledger.sqlite")) as connection:
        columns = "iteration, task, task_version, metric, value, stderr, n, tokens, superseded"
        return connection.execute(f"SELECT {columns} FROM scores ORDER BY 1, 2, 4").fetchall()


def states(project: Path) -> dict[int, str]:
    """State of each iteration; nothing as long as there is no ledger."""
    if not (project / "out" / "ledger.sqlite").exists():
        return {}
    with contextlib.closing(sqlite3.connect(project / "out" / "ledger.sqlite")) as connection:
        try:
            return dict(connection.execute("SELECT iteration, state FROM checkpoints").fetchall())
        except sqlite3.OperationalError:  # it is being made
            return {}


def log_lines(project: Path) -> list[str]:
    log = project / "out" / "logs" / "daemon.log"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def logged(project: Path, text: str) -> bool:
    return any(text in line for line in log_lines(project))


def logged_at(project: Path, text: str) -> float:
    """Unix time of the first line that has ``text``."""
    line = next(line for line in log_lines(project) if text in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def turns(project: Path) -> list[tuple[str, int]]:
    """(model, iteration) in the order in which their evaluation began."""
    pattern = re.compile(r"INFO (\S+) iteration (\d+): evaluation begins")
    return [(m[1], int(m[2])) for line in log_lines(project) if (m := pattern.search(line))]


def reasons(project: Path) -> dict[int, tuple[str, str | None]]:
    """State and error of each current save, by iteration."""
    with contextlib.closing(sqlite3.connect(project / "out" / "ledger.sqlite")) as connection:
        rows = connection.execute("SELECT iteration, state, error FROM checkpoint_rows WHERE superseded = 0").fetchall()
    return {iteration: (state, error) for iteration, state, error in rows}


def save_as_megatron(
    source: Path, save_directory: Path, iteration: int, *, pause: Callable[[], None] | None = None
) -> None:
    """Write ``source`` (one iteration's directory) as the save of ``iteration``, file by file in Megatron's order.

    ``pause`` is called when all but the finalising files are there. An earlier save is written over in place.
    """
    directory = save_directory / f"iter_{iteration:07d}"
    marks = [".metadata", "metadata.json"]
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    first = [name for name in files if name.name not in marks]
    for name in first:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, directory / name)
    if pause is not None:
        pause()
    for mark in marks:
        if (source / mark).exists():
            shutil.copyfile(source / mark, directory / mark)
    (save_directory / "latest_checkpointed_iteration.txt").write_text(str(iteration))
