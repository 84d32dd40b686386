"""The quickstart's main job, once, for real: Megatron trains, the daemon watches, and this is what a user finds."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from recorder.ledger import CheckpointRow, Ledger, ScoreRow
from recorder.wandb_file import read_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class MainJob:
    run: Path
    output: str
    returncode: int
    checkpoints: list[CheckpointRow]
    scores: list[ScoreRow]

    @property
    def evaluation(self) -> Path:
        return self.run / "evaluation"

    def curve(self, task: str, metric: str) -> list[float]:
        return [score.value for score in self.scores if score.task == task and score.metric == metric]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainJob]:
    directory = tmp_path_factory.mktemp("quickstart")
    quickstart = subprocess.Popen(
        ["demos/quickstart/run.sh", sys.executable, str(directory)],
        cwd=HOME,
        env={**os.environ, "QUICKSTART_ITERATIONS": "600", "QUICKSTART_SAVE_INTERVAL": "100"},  # six checkpoints
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = quickstart.communicate(timeout=2400)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(quickstart.pid, signal.SIGKILL)  # training and daemon would go on without their script
    assert quickstart.returncode == 0, output[-5000:] + errors[-5000:]
    with closing(Ledger(directory / "run" / "evaluation" / "ledger.sqlite")) as ledger:
        yield MainJob(directory / "run", output, quickstart.returncode, ledger.checkpoints(), ledger.scores())


def test_at_least_six_checkpoints_are_recorded_and_the_daemon_ended_by_itself(main_job: MainJob) -> None:
    assert len(main_job.checkpoints) >= 6
    assert {row.state for row in main_job.checkpoints} == {"recorded"}
    assert {row.error for row in main_job.checkpoints} == {None}
    assert "ended with status 0" in (main_job.evaluation / "logs" / "daemon.log").read_text()


def test_each_checkpoint_was_noticed_within_two_seconds(main_job: MainJob) -> None:
    """Not the one or other: beside training and evaluation everything waits for a processor now and then."""
    finalised = [
        Path(row.path, "metadata.json").stat().st_mtime for row in main_job.checkpoints
    ]  # Megatron's last file
    seconds = sorted(row.found_at - at for row, at in zip(main_job.checkpoints, finalised, strict=True))
    assert seconds[len(seconds) // 2] < 2.0 and seconds[-1] < 10.0, seconds


def test_it_really_learned_and_every_score_has_an_error_bar(main_job: MainJob) -> None:
    facts = main_job.curve("facts", "acc")
    patterns = main_job.curve("patterns", "exact_match")
    assert len(facts) == len(patterns) == len(main_job.checkpoints)
    assert facts[-1] - facts[0] > 0.2 and patterns[-1] - patterns[0] > 0.2
    assert all(score.stderr is not None and score.n >= 50 for score in main_job.scores)
    assert {score.source for score in main_job.scores} == {"icl", "helm"}
    iterations = {score.iteration: score.tokens for score in main_job.scores}
    assert all(tokens == pytest.approx(iteration * 0.000002048) for iteration, tokens in iterations.items())


def test_a_helm_scenario_ran_through_helms_own_runner_on_every_checkpoint(main_job: MainJob) -> None:
    states = list((main_job.run / "helm" / "runs").rglob("scenario_state.json"))
    assert len(states) == 2 * len(main_job.checkpoints)  # custom_mcqa and dyck_language
    helm = {(score.iteration, score.task) for score in main_job.scores if score.source == "helm"}
    tasks = ("custom_mcqa", "dyck_language")
    assert helm == {(row.iteration, task) for row in main_job.checkpoints for task in tasks}


def test_each_conversion_has_a_receipt(main_job: MainJob) -> None:
    for row in main_job.checkpoints:
        path = main_job.evaluation / row.model / f"iter_{row.iteration:07d}" / "receipt.json"
        assert json.loads(path.read_text())["parameters"] > 0


def test_the_leaderboard_file_has_the_model_and_two_baselines(main_job: MainJob) -> None:
    with (main_job.evaluation / "leaderboard.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    models = [row["model"] for row in rows]
    assert "quickstart-gpt" in models
    assert len(set(models) - {"quickstart-gpt"}) >= 2
    assert all(row["rank"] for row in rows)


def test_wandbs_offline_directories_hold_one_run_id_with_one_row_per_checkpoint(main_job: MainJob) -> None:
    runs = read_runs(main_job.evaluation / "wandb")
    mine = [run for run in runs if run.name == "quickstart-gpt"]
    assert len({run.run_id for run in mine}) == 1
    rows = [row for run in mine for row in run.history if "iteration" in row]
    assert sorted(row["iteration"] for row in rows) == [row.iteration for row in main_job.checkpoints]
    for row in rows:
        assert row["tokens"] == pytest.approx(row["iteration"] * 0.000002048)
        recorded = {s.metric: s.value for s in main_job.scores if (s.iteration, s.task) == (row["iteration"], "facts")}
        assert row["facts.acc"] == pytest.approx(recorded["acc"])
        assert "facts.acc_stderr" in row and "average" in row
    others = {run.run_id for run in runs} - {run.run_id for run in mine}
    assert any(run_id.endswith("-leaderboard") for run_id in others)
    assert len(others) >= 3  # the leaderboard and two baselines
    log = (main_job.evaluation / "logs" / "publish.log").read_text()
    assert "less than the current step" not in log


def test_the_output_says_where_to_look(main_job: MainJob) -> None:
    assert str(main_job.evaluation / "report.html") in main_job.output
    assert str(main_job.evaluation / "leaderboard.csv") in main_job.output
