"""--status --json keeps its shape: programs read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import evaluator
from autoeval.heartbeat import Doing, Heart
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
DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def test_every_key_of_the_page_is_there_and_no_other_with_the_daemon_s_last_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluator.yaml").write_text(CONFIG)
    (tmp_path / "checkpoints").mkdir()
    ledger = Ledger(tmp_path / "work" / "ledger.sqlite")
    ref = CheckpointRef("gpt", 1000, "f", "/checkpoints/1000", 1.0)
    ledger.note_checkpoint(ref, "evaluating")
    ledger.note_task(ref, "mmlu", "running", version="v")
    ledger.note_job(ref, "key", stage="evaluate", runner='{"type": "slurm"}', manifest=tmp_path / "m.json", size=2)
    ledger.close()
    flags = ["--config", str(tmp_path / "evaluator.yaml"), "--model-type", "huggingface", "--status", "--json"]
    assert evaluator.main(flags) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["schema"] == 1 and run["daemon"] is None

    heart = Heart()
    heart.directories = [tmp_path / "work"]
    heart.beat(Doing("evaluating", "gpt", 1000, ("mmlu",)))
    assert evaluator.main(flags) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["daemon"]["state"], run["daemon"]["iteration"], run["daemon"]["silent"]) == ("evaluating", 1000, False)

    (checkpoint,) = run["checkpoints"]
    (task,) = checkpoint["tasks"]
    (job,) = run["jobs"]
    assert (job["runner"], job["parts"], job["job"]) == ("slurm", 2, None)
    page = DOCUMENTED.read_text(encoding="utf-8")
    section = page.partition("## `--status --json`")[2].partition("\n## ")[0]
    for keys in (set(run), set(checkpoint), set(task), set(job), set(run["daemon"])):
        assert not {key for key in keys if f"`{key}`" not in section}
    listed = {word for word in section.split("`")[1::2] if word.isidentifier()}
    known = {*run, *checkpoint, *task, *job, *run["daemon"], "iteration", "reason"}
    states = {"found", "pinned", "converted", "evaluating", "evaluated", "recorded", "failed", "missed"}
    states |= {"queued", "running", "done", "null", "true", "convert", "evaluate", "open", "cancelling"}
    assert listed - states <= known
