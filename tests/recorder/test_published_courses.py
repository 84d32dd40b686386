"""The published courses of whole trainings (EleutherAI's Pythia, BigScience), judged as a run of ours would be."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

from recorder.baselines import Baseline
from recorder.benchmark_health import benchmark_health
from recorder.leaderboard import leaderboard, metric_key
from recorder.ledger import ScoreRow
from recorder.sources.reading import read_model
from recorder.trend import worth
from recorder.verdict import checkpoint_verdict, compare
from recorder.wandb_writer import main
from recorder.writer_config import Evaluation

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PUBLISHED = DATA / "checkpoint_evals"
TOKENS = 0.002097152  # billions an iteration, batches of two million tokens

pytestmark = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"{PUBLISHED} is not here")

# model -> (path, billions of tokens an iteration); a course's file has its own tokens
PYTHIA = {
    "pythia-160m": ("pythia-v1/pythia-160m/zero-shot", TOKENS),
    "pythia-160m-0.5M": ("pythia-v1/pythia-160m-0.5MtokBS", TOKENS / 4),
    "pythia-1b-bf16": ("pythia-v1/pythia-1b-bf16/zero-shot/1b-bf16_step*.json", TOKENS),
    "pythia-1b-bf16-5shot": ("pythia-v1/pythia-1b-bf16/zero-shot/1b-bf16-5shot_step*.json", TOKENS),
    "pythia-1.4b": ("pythia-v1/pythia-1.4b/zero-shot", TOKENS),
    "pythia-1.4b-deduped": ("pythia-v1/pythia-1.4b-deduped/zero-shot", TOKENS),
    "pythia-2.8b": ("pythia-v1/pythia-2.8b/zero-shot", TOKENS),
    "pythia-12b": ("pythia-v1/pythia-12b/zero-shot", TOKENS),
}
BIGSCIENCE = {
    "tr1-13b": "bigscience/tr1",
    "tr3d": "bigscience/tr3/tr3d-1B3-oscar-checkpoints_agg.json",
    "tr3e": "bigscience/tr3/tr3e-1B3-c4-checkpoints_agg.json",
    "tr12a": "bigscience/tr12",
    "bloom": "bigscience/tr11/bloom",
    "bloom-1b3": "bigscience/tr11/bloom1b3",
    "opt": "bigscience/tr11/opt",
}


@cache
def published(name: str, **options: object):
    path, tokens = PYTHIA[name] if name in PYTHIA else (BIGSCIENCE[name], None)
    written = Evaluation(
        source="lm_eval", model_name=name, path=str(PUBLISHED / path), token_per_iteration=tokens, **options
    )
    return read_model(written, Path("config.yaml"))


def course(name: str) -> list[ScoreRow]:
    return published(name).scores()


def test_the_patterns_above_name_every_file() -> None:
    files = set(PUBLISHED.rglob("*.json"))
    named = set()
    for path in [path for path, _ in PYTHIA.values()] + list(BIGSCIENCE.values()):
        at = PUBLISHED / path
        named |= set(at.rglob("*.json")) if at.is_dir() else {at} if at.is_file() else set(at.parent.glob(at.name))
    assert named == files and len(files) > 180


@pytest.mark.parametrize("name", sorted(PYTHIA))
def test_every_value_equals_its_file(name: str) -> None:
    """Each number of each of the model's files, without groups; and none besides."""
    path = PUBLISHED / PYTHIA[name][0]
    files = sorted(path.glob("*.json")) if path.is_dir() else sorted(path.parent.glob(path.name))
    rows = {row.iteration: row for row in published(name, groups=_NONE).rows}
    assert len(rows) == len(files) and (len(rows) == 27 or name.startswith(("pythia-1b", "pythia-160m-")))
    for file in files:
        row = rows[int(re.search(r"step(\d+)", file.name)[1])]
        assert row.tokens == pytest.approx(row.iteration * PYTHIA[name][1])
        results = json.loads(file.read_text())["results"]
        values = {f"{task}.{key}": value for task, metrics in results.items() for key, value in metrics.items()}
        assert row.values == {key: value for key, value in values.items() if not key.endswith("_stderr")}
        errors = {key.removesuffix("_stderr"): value for key, value in values.items() if key.endswith("_stderr")}
        assert row.stderrs == {key: value for key, value in errors.items() if key in row.values}


class _Nothing(dict):
    """An empty mapping that a cache can take."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


_NONE = _Nothing()


@pytest.mark.parametrize("name", ["tr3d", "tr3e", "tr12a"])
def test_bigsciences_courses_equal_their_files(name: str) -> None:
    path = PUBLISHED / BIGSCIENCE[name]
    content = json.loads((path if path.is_file() else next(path.glob("*.json"))).read_text())
    rows = published(name, groups=_NONE).rows
    assert [row.iteration for row in rows] == content["checkpoints"]
    assert [row.tokens for row in rows] == [tokens / 1e9 for tokens in content["tokens"]]
    for place, row in enumerate(rows):
        expected = {
            f"{task}.{metric}": values[place]
            for task, metrics in content["results"].items()
            for metric, values in metrics.items()
            if not metric.endswith("_stderr") and values[place] is not None
        }
        assert row.values == expected


def test_sizes_of_the_data_sets_come_out_of_the_errors() -> None:
    row = published("pythia-12b").rows[-1]
    assert row.n["lambada_openai.acc"] == 5153 and row.n["piqa.acc"] == 1838 and row.n["arc_easy.acc"] == 2376
    assert abs(row.n["mmlu.acc"] - 14042) <= 60  # 57 subjects, each rounded


def test_the_lambada_decline_of_160m_is_a_significant_regression() -> None:
    """0.372 at 83,000 and 0.328 at 143,000 of 5,153 items: 4.6 standard errors of two independent samples."""
    scores, model = course("pythia-160m"), "pythia-160m"
    verdict = compare(scores, (model, 143000), (model, 83000))
    (lambada,) = [task for task in verdict.tasks if task.metric == "lambada_openai.acc"]
    assert (round(lambada.old, 3), round(lambada.new, 3)) == (0.372, 0.328)
    assert lambada.word == "worse" and lambada.difference.p_value < 1e-3 and lambada.beyond_noise
    assert verdict.regressions[0] == lambada
    newest = checkpoint_verdict(scores, model)
    assert newest is not None and newest.iteration == 143000
    found = {task.metric: task for task in newest.regressions}  # after 26 looks, against the best of 26
    assert found["lambada_openai.acc"].old_iteration == 63000 and found["lambada_openai.acc"].word == "worse"
    future = worth(scores, model)
    assert future is not None and future.word == "falling"
    assert {task.metric: task.word for task in future.tasks}["lambada_openai.acc"] == "falling"
    assert "getting worse" in future.sentence


def test_nothing_is_called_a_regression_while_160m_still_rises() -> None:
    for iteration in (23000, 33000, 43000):
        found = checkpoint_verdict(course("pythia-160m"), "pythia-160m", iteration)
        assert found is not None and not found.regressions


@pytest.mark.parametrize("name", ["pythia-160m", "pythia-160m-0.5M"])
def test_mmlu_at_chance_is_no_signal(name: str) -> None:
    health = {one.metric: one for one in benchmark_health(course(name), name)}
    assert health["mmlu.acc"].word == "no signal" and "at chance" in health["mmlu.acc"].reasons[0]
    assert health["lambada_openai.acc"].word == "signal" and health["arc_easy.acc"].word == "signal"
    future = worth(course(name), name)
    assert future is not None and "mmlu.acc" not in future.averaged and "arc_easy.acc" in future.averaged


def test_12b_is_still_worth_training_at_mid_run() -> None:
    """At 73,000 of 143,000 iterations; what then came lies in the interval that was given."""
    scores, model = course("pythia-12b"), "pythia-12b"
    future = worth(scores, model, up_to=73000, ahead=(143000 - 73000) * TOKENS)
    assert future is not None and future.word == "worth it" and "still worth it" in future.sentence
    one = future.average
    assert one is not None and one.gain is not None and one.low is not None and one.high is not None
    assert one.gain > (one.detectable or 1.0)
    chosen = [row for row in scores if metric_key(row) in future.averaged and row.iteration in (73000, 143000)]
    board = {row.iteration: row.score for row in leaderboard(chosen, which="all")}
    came = (board[143000] or 0.0) - (board[73000] or 0.0)
    scatter = (one.detectable or 0.0) / 2.8  # of a difference of two checkpoints; the interval is of the course
    assert one.low - scatter < came < one.high + scatter


def test_tokens_to_a_baseline_are_foretold() -> None:
    """12b at 73,000 (153 billion tokens) against what it had at 123,000 (258 billion)."""
    scores, model = course("pythia-12b"), "pythia-12b"
    later = [row for row in published(model).rows if row.iteration == 123000]
    goal = Baseline("later", None, later[0].values, "", later[0].stderrs)
    reached = Baseline("small", None, published("pythia-160m").rows[-1].values, "")
    future = worth(scores, model, up_to=73000, baselines=[goal, reached])
    assert future is not None and future.average is not None
    reaches = {one.baseline: one for one in future.average.reaches}
    assert reaches["small"].reached and not reaches["later"].reached
    low, high = reaches["later"].low, reaches["later"].high
    assert low is not None and low < 258 and (high is None or high > 258)


@pytest.mark.slow
def test_all_of_it_through_the_command(tmp_path: Path, capsys) -> None:
    """Leaderboard and report of every published model; the cells equal the files."""
    lines = [
        f"project: published\nledger: {tmp_path}/ledger.sqlite\nwandb: {{mode: disabled}}\nleaderboard: true\nevals:"
    ]
    for name, (path, tokens) in PYTHIA.items():
        lines.append(
            f"  - {{source: lm_eval, model_name: {name}, path: '{PUBLISHED / path}', token_per_iteration: {tokens}}}"
        )
    for name, path in BIGSCIENCE.items():
        lines.append(f"  - {{source: lm_eval, model_name: {name}, path: '{PUBLISHED / path}'}}")
    (tmp_path / "all.yaml").write_text(
        "\n".join(lines) + "\nleaderboard_iterations: {pythia-160m: best, tr3d: 99000}\n"
    )
    assert main(["--config", str(tmp_path / "all.yaml")]) == 0
    said = capsys.readouterr().out
    assert "pythia-12b" in said
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as stream:
        board = {row["model"]: row for row in csv.DictReader(stream)}
    assert set(board) == set(PYTHIA) | set(BIGSCIENCE)
    assert board["tr3d"]["iteration"] == "99000" and board["pythia-160m"]["iteration"] != "143000"
    for name in ("pythia-12b", "pythia-160m", "tr3d", "opt"):
        row = next(row for row in published(name).rows if row.iteration == int(board[name]["iteration"] or 0))
        for key, value in row.values.items():
            assert float(board[name][key]) == value
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    last = published("pythia-12b").rows[-1]
    assert "pythia-12b" in report and f"{last.values['lambada_openai.acc']:.3f}" in report


def test_answers_to_each_question_are_compared_question_by_question() -> None:
    """A fine-tuned Llama's answers to 200 MMLU questions at 5 checkpoints: 63 right at first, 68 at last."""
    written = Evaluation(
        source="predictions", model_name="llama", path=str(PUBLISHED / "fedllm_mmlu"), groups={"mmlu": "*"}
    )
    model = read_model(written, Path("config.yaml"))
    right = {}
    for file in (PUBLISHED / "fedllm_mmlu").glob("checkpoint-*/*.csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            at = int(file.parent.name.removeprefix("checkpoint-"))
            lines = list(csv.DictReader(stream))
            right[at] = right.get(at, 0) + sum("ABCD"[int(line["answer"])] == line["prediction"] for line in lines)
    assert {row.iteration: row.values["mmlu.acc"] * 200 for row in model.rows} == pytest.approx(right)
    verdict = compare(model.scores(), ("llama", 200), ("llama", 0), items=lambda _, at: model.outcomes(at))
    (task,) = verdict.tasks
    assert task.paired and task.difference.gained - task.difference.lost == right[200] - right[0] == 5
    assert task.word == "cannot tell" and task.difference.discordant < 200 - 60
