"""--status: read by a person in 80 columns, and by a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import evaluator
from recorder.ledger import Ledger
from recorder.results import CheckpointRef

CONFIG = """
auto_eval:
  project_name: demo
  model_name: gpt
  work_dir: work
  huggingface: {checkpoint_path: checkpoints}
  icl: {datasets: [hellaswag_ppl]}
"""


def fill(tmp_path: Path, tasks: int) -> list[str]:
    (tmp_path / "evaluator.yaml").write_text(CONFIG)
    (tmp_path / "checkpoints").mkdir()
    ledger = Ledger(tmp_path / "work" / "ledger.sqlite")
    for iteration in (1000, 2000):
        ref = CheckpointRef("gpt", iteration, f"f{iteration}", f"/checkpoints/{iteration}", iteration / 1000)
        ledger.note_checkpoint(ref, "recorded" if iteration == 1000 else "evaluating")
        for number in range(tasks):
            state = "done" if iteration == 1000 or number else "failed"
            log = f"/a/long/path/to/logs/of/the/run/gpt_iteration_{iteration}_task{number:02}.log"
            error = "out of memory " * 12 if state == "failed" else None
            ledger.note_task(ref, f"task{number:02}", state, version="v", error=error, log=log)
    ledger.close()
    return ["--config", str(tmp_path / "evaluator.yaml"), "--model-type", "huggingface", "--status"]


@pytest.mark.parametrize("tasks", [2, 30])
def test_it_fits_into_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluator.main(fill(tmp_path, tasks)) == 0
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    assert header.startswith("gpt (") and max(map(len, lines)) <= 80
    assert "/a/long/path/to/logs/of/the/run/gpt_iteration_2000_task00.log" in shown  # whole, to be copied
    assert "iteration 2000, task00: out of memory" in " ".join(shown.split())
    if tasks == 2:
        assert lines[0].split() == ["iteration", "state", "task00", "task01"]
        assert lines[3].split() == ["2000", "evaluating", "failed", "done"]
    else:
        assert lines[0].split() == ["iteration", "state", "tasks", "each", "task"]
        assert lines[2].split() == ["1000", "recorded", "30", "done", "+" * 30]
        assert lines[3].split() == ["2000", "evaluating", "29", "done,", "1", "failed", "x" + "+" * 29]
        assert "in the order 1 task00, 2 task01" in " ".join(shown.split())


def test_a_program_gets_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluator.main([*fill(tmp_path, 2), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["model"], run["work_dir"], run["not_evaluated"]) == ("gpt", str(tmp_path / "work"), [])
    first, second = run["checkpoints"]
    assert (first["iteration"], first["state"], first["tokens"], second["state"]) == (
        1000,
        "recorded",
        1.0,
        "evaluating",
    )
    assert [(task["task"], task["state"]) for task in second["tasks"]] == [("task00", "failed"), ("task01", "done")]


def test_nothing_yet_and_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluator.yaml").write_text(CONFIG)
    flags = ["--config", str(tmp_path / "evaluator.yaml"), "--model-type", "huggingface"]
    assert evaluator.main([*flags, "--status"]) == 0
    assert "nothing evaluated yet" in capsys.readouterr().out
    assert evaluator.main([*flags, "--json"]) == 2
    assert "--json belongs to --status" in capsys.readouterr().err
