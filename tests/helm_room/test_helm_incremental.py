"""A killed suite goes on where it was; few-shot trials are all run, and kept apart in the items' means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helm_tiny_models import DirectModel

from autoeval.helm.run import HelmOutcome, run_helm_task
from autoeval.helm.spec import HelmTask

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = tuple(f"dyck_language:num_parenthesis_pairs={pairs}" for pairs in (2, 3, 4))
TASK = HelmTask("dyck_language", "v", ENTRIES, (), 4)

# A process that stands still in its second run, and says so.
CHILD = """
import sys, time
from pathlib import Path
from helm_tiny_models import DirectModel
from test_helm_incremental import TASK, evaluate

class Halting(DirectModel):
    calls = 0
    def generate(self, requests):
        self.calls += 1
        if self.calls == 2:
            Path(sys.argv[3]).touch()
            time.sleep(600)
        return super().generate(requests)

path = Path(sys.argv[1])
evaluate(TASK, Halting(path), path, Path(sys.argv[2]))
"""


def evaluate(task: HelmTask, model: DirectModel, path: Path, output: Path) -> HelmOutcome:
    return run_helm_task(task, model, model_name=path.name, output_path=output, suite="suite")


def test_a_killed_suite_goes_on_at_the_next_run(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    path, output, mark = tiny_models[0], tmp_path / "killed", tmp_path / "in the second run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(output), str(mark)], env=environment)
    try:
        deadline = time.monotonic() + 300
        while not mark.exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = sorted(receipt.parent.name for receipt in output.glob("runs/suite/*/autoeval.json"))
    assert len(done) == 1 and "np=2" in done[0]
    receipt = output / "runs" / "suite" / done[0] / "autoeval.json"
    written = receipt.stat().st_mtime_ns

    model = DirectModel(path)
    resumed = evaluate(TASK, model, path, output)
    assert receipt.stat().st_mtime_ns == written
    assert (resumed.cost["runs"], resumed.cost["runs_reused"]) == (3, 1)
    assert resumed.cost["prompts_reused"] == 1  # those of the run that was killed
    whole = evaluate(TASK, DirectModel(path), path, tmp_path / "whole")
    assert (resumed.scores, resumed.items) == (whole.scores, whole.items)
    assert 0 < resumed.cost["generated_tokens"] < whole.cost["generated_tokens"]
    assert not list(output.rglob("*.tmp"))


def test_every_trial_is_run_and_the_score_is_their_mean(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny_models[0]
    # Prompts of other examples have other lengths, so this figure shows what a random model's mistakes do not.
    entry = "synthetic_reasoning:mode=pattern_match,eval_split=test,max_train_instances=1"
    task = HelmTask("synthetic_reasoning", "v", (entry,), ("quasi-EM", "num_prompt_tokens"), 5, 3)
    outcome = evaluate(task, DirectModel(path), path, tmp_path)
    (directory,) = (tmp_path / "runs" / "suite").glob("synthetic*")
    states = json.loads((directory / "scenario_state.json").read_text())["request_states"]
    prompts: dict[int, list[str]] = {}
    for state in states:
        prompts.setdefault(state["train_trial_index"], []).append(state["request"]["prompt"])
    assert {trial: len(of_trial) for trial, of_trial in prompts.items()} == {0: 5, 1: 5, 2: 5}
    assert len({of_trial[0] for of_trial in prompts.values()}) == 3  # each trial has its own examples

    lengths: dict[str, list[float]] = {}
    for entry in json.loads((directory / "per_instance_stats.json").read_text()):
        for stat in entry["stats"]:
            if stat["name"]["name"] == "num_prompt_tokens":
                lengths.setdefault(entry["instance_id"], []).append(stat["mean"])
    assert all(len(set(values)) > 1 for values in lengths.values())
    means = {key: sum(values) / 3 for key, values in lengths.items()}
    items = {item.key.split("|")[1]: item.value for item in outcome.items if item.metric == "num_prompt_tokens"}
    assert items == pytest.approx(means)
    exact_match, length = outcome.scores
    assert exact_match.n == length.n == 5 and length.value == pytest.approx(sum(means.values()) / 5)
