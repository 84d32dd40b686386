"""The command line of wandb_writer.py, as it is typed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recorder.helm_output import HelmOutputError, read_suite
from recorder.ledger import Ledger
from recorder.refresh import read_settings, refresh
from recorder.results import CheckpointRef, Score, TaskResult
from recorder.wandb_file import read_runs
from recorder.wandb_writer import main

HOME = Path(__file__).resolve().parents[2]
BASELINES = """
project: proj
ledger: work/ledger.sqlite
wandb: {mode: offline}
evals:
  - {eval_type: helm, source: file, model_name: gpt2-124m, token_num: 10, eval_result: {mmlu: {EM: 0.26}}}
  - {eval_type: helm, source: file, model_name: better, token_num: 300, eval_result: {mmlu: {EM: 0.5, EM_stderr: 0.01}}}
"""
LEADERBOARD = """
project: proj
ledger: work/ledger.sqlite
wandb: {mode: offline}
leaderboard: true
leaderboard_metrics: [mmlu.EM]
excluded_runs: [better]
"""


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "baselines.yaml").write_text(BASELINES)
    (tmp_path / "leaderboard.yaml").write_text(LEADERBOARD)
    ledger = Ledger(tmp_path / "work" / "ledger.sqlite")
    ref = CheckpointRef("gpt", 2000, "f", "/ckpt", 4.2)
    ledger.note_checkpoint(ref, "evaluated")
    ledger.ingest(TaskResult(ref, "mmlu", "v1", "helm", (Score("EM", 0.4, 0.02, 100), Score("PEM", 0.5, 0.02, 100))))
    ledger.close()
    return tmp_path


def write(config: Path, *flags: str) -> int:
    return main(["--config", str(config), *flags])


@pytest.mark.slow
def test_baselines_then_leaderboard_from_inside_recorder(configs: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PYTHONPATH"))}
    for name in ("baselines.yaml", "leaderboard.yaml"):
        done = subprocess.run(
            [sys.executable, "wandb_writer.py", "--config", str(configs / name)],
            cwd=HOME / "recorder",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"offline, files in {configs / 'work' / 'wandb'}" in done.stdout
    runs = {run.name: run for run in read_runs(configs / "work" / "wandb")}
    assert runs["gpt2-124m"].history[0]["mmlu.EM"] == 0.26 and runs["gpt2-124m"].history[0]["tokens"] == 10
    assert runs["better"].history[0]["mmlu.EM_stderr"] == 0.01
    board = runs["leaderboard"]
    table = json.loads((board.path.parent / "files" / board.history[0]["leaderboard.path"]).read_text())
    assert table["columns"] == ["model", "iteration", "tokens", "score", "rank", "mmlu.EM"]
    assert [(line[0], line[5]) for line in table["data"]] == [("gpt", 0.4), ("gpt2-124m", 0.26)]  # better: excluded


def board(work: Path) -> tuple[list[str], list[list]]:
    """The columns and rows of the table that W&B was sent last."""
    run = [run for run in read_runs(work / "wandb") if run.name == "leaderboard"][-1]
    table = json.loads((run.path.parent / "files" / run.history[-1]["leaderboard.path"]).read_text())
    return table["columns"], table["data"]


def test_the_daemons_next_rebuild_shows_the_board_that_was_asked_for(configs: Path):
    work = configs / "work"
    for name in ("baselines.yaml", "leaderboard.yaml"):
        assert write(configs / name) == 0
    asked = (work / "leaderboard.csv").read_text()
    columns, rows = board(work)
    shown = list(csv.DictReader(asked.splitlines()))
    assert [[line[key] for key in columns] for line in shown] == [
        ["" if cell is None else str(cell) for cell in row] for row in rows
    ]
    (work / "settings.json").write_text(json.dumps({"project": "proj", "wandb": {"mode": "offline"}}))
    assert refresh(work, read_settings(work / "settings.json")).error is None
    assert (work / "leaderboard.csv").read_text() == asked and board(work) == (columns, rows)
    report = (work / "report.html").read_text()
    assert "Left out as asked: better" in report
    (configs / "leaderboard.yaml").write_text(LEADERBOARD.split("leaderboard_metrics")[0])
    assert write(configs / "leaderboard.yaml") == 0
    assert {row[0] for row in board(work)[1]} == {"gpt", "gpt2-124m", "better"}


def test_baselines_alone_make_a_board(configs: Path, capsys):
    (configs / "both.yaml").write_text(BASELINES.replace("work/", "sub/../new/") + "leaderboard: true\n")
    assert write(configs / "both.yaml") == 0
    said = capsys.readouterr().out
    assert ".." not in said and f"offline, files in {configs / 'new' / 'wandb'}" in said
    assert [(row[0], row[3], row[4]) for row in board(configs / "new")[1]] == [
        ("better", 0.5, 1),
        ("gpt2-124m", 0.26, 2),
    ]


def test_print_only_prints_and_changes_nothing(configs: Path, capsys):
    assert write(configs / "baselines.yaml", "--print-only") == 0
    assert "gpt2-124m" in capsys.readouterr().out
    assert not (configs / "work" / "wandb").exists()
    assert write(configs / "leaderboard.yaml", "--print-only") == 0
    shown = capsys.readouterr().out
    assert "gpt " in shown and "mmlu.EM" in shown and "gpt2-124m" not in shown


def test_summary_only_writes_no_history(configs: Path):
    assert write(configs / "baselines.yaml", "--summary-only") == 0
    assert write(configs / "leaderboard.yaml", "--summary-only") == 0
    runs = {run.name: run for run in read_runs(configs / "work" / "wandb")}
    assert set(runs) == {"gpt2-124m", "better", "gpt"}
    assert all(run.history == [] for run in runs.values())
    assert runs["gpt"].summary["mmlu.EM"] == 0.4 and runs["better"].summary["mmlu.EM"] == 0.5


def test_helm_output_becomes_rows_by_iteration(configs: Path, capsys):
    for iteration, values in {2000: (0.2, 0.4), 4000: (0.4, 0.8)}.items():
        for subject, value in zip(("anatomy", "virology"), values, strict=True):
            run = configs / f"helm/runs/suite/mmlu:subject={subject},model=x_iter_{iteration:07d}"
            run.mkdir(parents=True)
            name = {"name": "exact_match", "split": "test"}
            stats = [
                {"name": name, "count": 1, "mean": value},
                {"name": name | {"perturbation": {"name": "robustness"}}, "count": 1, "mean": 0.0},
                {"name": {"name": "exact_match", "split": "valid"}, "count": 1, "mean": 1.0},
                {"name": {"name": "quasi_exact_match", "split": "test"}, "count": 0},
            ]
            (run / "stats.json").write_text(json.dumps(stats))
    config = configs / "helm.yaml"
    config.write_text(
        "project: proj\nledger: work/ledger.sqlite\nwandb: {mode: offline}\nevals:\n"
        "  - {eval_type: helm, source: helm, model_name: other, token_per_iteration: 0.002, helm_output_dir: helm,\n"
        "     helm_suite_name: suite, benchmarks: [{name: mmlu, metrics: [EM]}]}\n"
    )
    assert write(config) == 0
    (other,) = [run for run in read_runs(configs / "work" / "wandb") if run.name == "other"]
    assert [(row["iteration"], row["tokens"], row["mmlu.EM"]) for row in other.history] == [
        (2000, 4, pytest.approx(0.3)),
        (4000, 8, pytest.approx(0.6)),
    ]
    config.write_text(config.read_text().replace("[EM]", "[quasi-EM]"))
    assert write(config) == 1
    assert "stats.json: no value of 'quasi-EM'" in capsys.readouterr().err


def test_benchmarks_and_metrics_of_helm_go_by_the_names_that_people_use(tmp_path: Path):
    for run, name in {
        "commonsense:dataset=hellaswag,method=multiple_choice_joint,model=x": "exact_match",
        "commonsense:dataset=openbookqa,method=multiple_choice_joint,model=x": "quasi_exact_match",
        "natural_qa:mode=closedbook,model=x": "f1_score",
        "dyck_language:num_parenthesis_pairs=3,model=x": "exact_match_indicator",
    }.items():
        directory = tmp_path / "runs" / "suite" / run
        directory.mkdir(parents=True)
        stats = [{"name": {"name": name, "split": split}, "count": 1, "mean": 0.25} for split in ("valid", "test")]
        (directory / "stats.json").write_text(json.dumps(stats))
    asked = [("hellaswag", ["EM"]), ("natural_qa_closedbook", ["F1"]), ("dyck_language", ["EM-indicator"])]
    expected = {"hellaswag.EM": 0.25, "natural_qa_closedbook.F1": 0.25, "dyck_language.EM-indicator": 0.25}
    assert read_suite(tmp_path, "suite", asked, 7) == {7: expected}
    with pytest.raises(HelmOutputError, match="no value of 'EM'"):
        read_suite(tmp_path, "suite", [("commonsense", ["EM"])], 7)  # both: one of them has none
    with pytest.raises(HelmOutputError, match="dyck_language, hellaswag, natural_qa_closedbook, openbookqa"):
        read_suite(tmp_path, "suite", [("mmlu", ["EM"])], 7)
    (tmp_path / "runs/suite/dyck_language:num_parenthesis_pairs=3,model=x/stats.json").write_text(
        '[{"name": {"name": "exact_match_indicator", "split": "test"}, "count": 1, "mean": NaN}]'
    )
    with pytest.raises(HelmOutputError, match="not a finite number"):
        read_suite(tmp_path, "suite", asked, 7)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("project: p\nleaderbord: true", ["leaderbord", "'leaderboard'"]),
        ("project: p\nevals: [{source: file, model_nme: x}]", ["evals.0.model_nme", "'model_name'"]),
        ("project: p\nevals: [{source: file, model_name: x}]", ["eval_result"]),
        ("leaderboard: true", ["project"]),
        (
            "project: p\nevals: [{source: file, model_name: x, eval_result: {a: {b: .nan}}}]",
            ["eval_result.a.b", "finite"],
        ),
        ("project: p\nevals: [&e {source: file, model_name: x, eval_result: {a: {b: 1}}}, *e]", ["'x'", "twice"]),
        ("[", ["cannot be read as YAML"]),
    ],
)
def test_a_wrong_key_ends_with_2_and_is_named(tmp_path: Path, capsys, written: str, said: list[str]):
    config = tmp_path / "wrong.yaml"
    config.write_text(written)
    assert write(config) == 2
    message = capsys.readouterr().err
    assert str(config) in message and all(part in message for part in said)


def test_the_shipped_baselines_are_readable(capsys):
    assert write(HOME / "config" / "baselines.yaml", "--print-only") == 0
    assert "pythia-12b" in capsys.readouterr().out
