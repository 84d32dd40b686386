"""What other programs wrote, read by wandb_writer's sources. The files in written_elsewhere/ are their own work:
lm_eval 0.4.13 on tasks of four items (its model "dummy"), opencompass 0.5.4's DefaultSummarizer on two result files;
only what describes the machine was taken out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from recorder.ledger import Ledger
from recorder.published_models import courses, levels, remember, remembered
from recorder.results import CheckpointRef, Score, TaskResult
from recorder.sources.measurement import SourceError, iteration_in
from recorder.sources.reading import read_model
from recorder.verdict import checkpoint_verdict
from recorder.wandb_writer import main
from recorder.writer_config import Evaluation, WriterConfigError, read_config

WRITTEN = Path(__file__).with_name("written_elsewhere")


def model_of(path: Path, source: str = "lm_eval", **options):
    return read_model(Evaluation(source=source, model_name="m", path=str(path), **options), Path("config.yaml"))


def test_a_file_of_lm_eval_0_4(tmp_path: Path) -> None:
    content = json.loads((WRITTEN / "results_lm_eval_0_4_13.json").read_text())
    model = model_of(WRITTEN / "results_lm_eval_0_4_13.json")
    (row,) = model.rows
    assert row.iteration == 2000  # of its model's name, /ckpt/gpt-iter_0002000
    small = content["results"]["small"]
    assert row.values == {
        "small_ppl.word_perplexity": content["results"]["small_ppl"]["word_perplexity,none"],
        "small_ppl.bits_per_byte": content["results"]["small_ppl"]["bits_per_byte,none"],
        "small.acc": small["acc,none"],
    }  # the group's members stand in the group
    assert row.stderrs == {"small.acc": small["acc_stderr,none"]}  # "N/A" is none
    assert row.n["small.acc"] == 8 and row.n["small_ppl.bits_per_byte"] == 4
    assert model.lower == ("small_ppl.bits_per_byte", "small_ppl.word_perplexity")
    single = model_of(WRITTEN / "results_lm_eval_0_4_13.json", groups={})
    assert single.rows[0].values["small_left.acc_norm"] == 0.75 and single.rows[0].n["small_left.acc_norm"] == 4


def test_filters_stay_in_the_name_and_the_iteration_may_be_a_revision(tmp_path: Path) -> None:
    content = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.1,
                "exact_match_stderr,strict-match": 0.01,
                "exact_match,flexible-extract": 0.2,
                "exact_match_stderr,flexible-extract": 0.02,
            }
        },
        "config": {"model_args": "pretrained=EleutherAI/pythia-160m,revision=step3000"},
    }
    path = tmp_path / "results_x.json"
    path.write_text(json.dumps(content))
    (row,) = model_of(path, token_per_iteration=0.002).rows
    assert row.iteration == 3000 and row.tokens == 6.0
    assert row.values == {"gsm8k.exact_match,strict-match": 0.1, "gsm8k.exact_match,flexible-extract": 0.2}
    assert row.stderrs["gsm8k.exact_match,flexible-extract"] == 0.02


def test_opencompass_columns_are_iterations_and_percentages_shares() -> None:
    model = model_of(WRITTEN / "summary_20261121_120000.csv", "opencompass", token_per_iteration=0.001)
    assert [(row.iteration, row.tokens) for row in model.rows] == [(2000, 2.0), (4000, 4.0)]
    first, second = model.rows
    assert first.values == pytest.approx({"piqa.accuracy": 0.615, "gen.score": 0.4, "gen.rouge1": 0.125})
    assert second.values == pytest.approx({"piqa.accuracy": 0.6625})  # "-" is not measured, not 0
    assert model.chance == {"piqa.accuracy": 0.5}
    kept = model_of(WRITTEN / "summary_20261121_120000.csv", "opencompass", percent=False, model="*4000")
    assert [row.values for row in kept.rows] == [{"piqa.accuracy": 66.25}]


def test_another_runs_ledger_is_a_course(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "other" / "ledger.sqlite")
    for iteration, value in ((1000, 0.3), (2000, 0.4)):
        ref = CheckpointRef("other", iteration, "f", "/x", iteration / 1000)
        ledger.ingest(TaskResult(ref, "piqa", "v1", "icl", (Score("acc", 0.9, 0.01, 50, chance=0.5),)))
        ledger.ingest(TaskResult(ref, "piqa", "v2", "icl", (Score("acc", value, 0.01, 100, chance=0.5),)))
    ledger.close()
    model = model_of(tmp_path / "other" / "ledger.sqlite", "ledger")
    assert [(row.iteration, row.tokens, row.values) for row in model.rows] == [
        (1000, 1.0, {"piqa.acc": 0.3}),
        (2000, 2.0, {"piqa.acc": 0.4}),
    ]
    assert model.rows[0].n == {"piqa.acc": 100} and model.chance == {"piqa.acc": 0.5}
    with pytest.raises(SourceError, match=r"no scores of the model 'x'; it has other"):
        model_of(tmp_path / "other" / "ledger.sqlite", "ledger", model="x")


def test_subjects_are_one_benchmark(tmp_path: Path) -> None:
    """MMLU of its subjects: over all items, as the harness groups them; n of each from its standard error."""
    parts = {"a": (0.25, 100), "b": (0.5, 300)}
    results = {
        f"hendrycksTest-{name}": {"acc": p, "acc_stderr": math.sqrt(p * (1 - p) / (n - 1))}
        for name, (p, n) in parts.items()
    }
    path = tmp_path / "x_step10.json"
    path.write_text(json.dumps({"results": results}))
    (row,) = model_of(path).rows
    assert row.values == {"mmlu.acc": pytest.approx((25 + 150) / 400)} and row.n == {"mmlu.acc": 400}
    assert row.stderrs["mmlu.acc"] == pytest.approx(
        math.hypot(0.25 * math.sqrt(0.1875 / 99), 0.75 * math.sqrt(0.25 / 299))
    )
    assert set(model_of(path, groups={}).rows[0].values) == {"hendrycksTest-a.acc", "hendrycksTest-b.acc"}


def test_two_results_of_one_place_are_an_error_that_names_both(tmp_path: Path) -> None:
    """Shots stand in no old file: two series in one directory would be drawn as one curve."""
    for shots, step, value in (("0shot", 1000, 0.3), ("5shot", 2000, 0.4)):
        (tmp_path / f"m-{shots}_step{step}.json").write_text(json.dumps({"results": {"piqa": {"acc": value}}}))
    with pytest.raises(
        SourceError, match=r"several series, m-0shot_step1000.json and m-5shot_step2000.json; .*m-0shot_step\*"
    ):
        model_of(tmp_path)
    assert model_of(tmp_path / "m-5shot_step*.json").rows[0].values == {"piqa.acc": 0.4}
    for name, value in (("a", 0.3), ("b", 0.4)):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / f"results_{name}.json").write_text(json.dumps({"results": {"piqa": {"acc": value}}}))
    with pytest.raises(SourceError, match=r"two results of piqa at iteration 0: results_a.json and results_b.json"):
        model_of(tmp_path / "new")


def test_names_are_made_ours() -> None:
    names = {"piqa.accuracy": "piqa.acc", "gen": "summary"}
    first = model_of(WRITTEN / "summary_20261121_120000.csv", "opencompass", names=names)
    assert set(first.rows[0].values) == {"piqa.acc", "summary.score", "summary.rouge1"}
    assert first.chance == {"piqa.acc": 0.5}
    with pytest.raises(ValueError, match=r"names\.piqa\.acc: expected a task for a task"):
        model_of(WRITTEN / "summary_20261121_120000.csv", "opencompass", names={"piqa.acc": "x"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ('{"scores": {}}', "expected lm-evaluation-harness"),
        ('{"results": {"piqa": 0.5}}', r"results\.piqa: expected a mapping"),
        ('{"results": {"piqa": {"acc": NaN}}}', r"results\.piqa\.acc: expected a finite number"),
        ('{"results": {"piqa": {"acc": [1, 2]}}, "checkpoints": [1]}', r"results\.piqa\.acc: expected 1 numbers"),
        ('{"results": {"piqa": {"acc": 1}}, "checkpoints": [1]}', r"results\.piqa\.acc: expected 1 numbers"),
        ('{"results": {"piqa": [1]}, "checkpoints": [1]}', r"results\.piqa: expected a mapping"),
        ('{"results": {"piqa": {"acc": ["x"]}}, "checkpoints": [1]}', r"results\.piqa\.acc: expected a finite number"),
        ('{"results": {"piqa": {"acc": [1]}}, "checkpoints": ["a"]}', "checkpoints: expected a finite number"),
        ('{"results": {"piqa": {"acc": [1]}}, "checkpoints": [1], "tokens": 5}', "tokens: expected 1 numbers"),
        ('{"results": {"piqa": {"acc": 1}}, "config": "x"}', "config: expected a mapping"),
        ('{"results": {"piqa": {"acc": 1}}, "n-samples": {"piqa": 3}}', r"n-samples\.piqa: expected a mapping"),
        ('{"results": {}}', "there is no number in it"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "results_x.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=said) as caught:
        model_of(path)
    assert str(path) in str(caught.value)


def test_a_wrong_summary_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "summary_x.csv"
    path.write_text("dataset,version,metric,mode,gpt\npiqa,d,accuracy,ppl,high\n")
    with pytest.raises(SourceError, match=r"summary_x\.csv: line 2: piqa: accuracy: expected a number or -"):
        model_of(path, "opencompass")
    path.write_text("a,b\n")
    with pytest.raises(SourceError, match=r"line 1: expected dataset,version,metric,mode"):
        model_of(path, "opencompass")
    with pytest.raises(SourceError, match=r"no such file"):
        model_of(tmp_path / "nowhere", "opencompass")


def test_the_configuration_says_what_a_source_needs(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("project: p\nevals: [{source: lm_eval, model_name: x}]\n")
    with pytest.raises(WriterConfigError, match=r"c\.yaml: evals\.0: .*source: lm_eval needs path"):
        read_config(config)
    config.write_text("project: p\nevals: [{source: lm_eval, model_name: x, path: y, chance: {piqa: 50}}]\n")
    with pytest.raises(WriterConfigError, match=r"chance\.piqa: expected a share"):
        read_config(config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("160m_step143000.json", 143000),
        ("global_step1000", 1000),
        ("iter_0002000", 2000),
        ("checkpoint-500", 500),
        ("a model", None),
        ("step10/iter_0000020", 20),
    ],
)
def test_iterations_in_names(text: str, expected: int | None) -> None:
    assert iteration_in(text) == expected


def test_models_outlive_their_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    one = model_of(WRITTEN / "results_lm_eval_0_4_13.json")
    course = model_of(WRITTEN / "summary_20261121_120000.csv", "opencompass")
    remember(ledger, [one])
    ledger.close()
    (tmp_path / "ledger.sqlite").unlink()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert remembered(ledger) == [one]
    ledger.close()
    assert levels([one]) == [one.newest()] and courses([one]) == []
    scores = courses([course])
    first = [(row.task, round(row.value, 9), row.position) for row in scores if row.iteration == 2000]
    assert first == [("piqa", 0.615, 0), ("gen", 0.4, 0), ("gen", 0.125, 1)]


def answers(path: Path, predictions: str, key: str = "ABCDABCD") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f'{k},"What, {k}?",w,x,y,z,{"ABCD".index(a)},{p}' for k, (a, p) in enumerate(zip(key, predictions, strict=True))
    ]
    path.write_text("\n".join([",question,choice0,choice1,choice2,choice3,answer,prediction", *lines]) + "\n")


def test_answers_to_each_question_are_items(tmp_path: Path) -> None:
    answers(tmp_path / "checkpoint-50/algebra_result.csv", "ABCDAAAA")
    answers(tmp_path / "checkpoint-50/history_result.csv", "AAAAAAAA")
    answers(tmp_path / "checkpoint-100/algebra_result.csv", "ABCDABCD")
    answers(tmp_path / "checkpoint-100/history_result.csv", "AAAAAAAA")
    first, last = model_of(tmp_path, "predictions").rows
    assert (first.iteration, first.values) == (50, {"algebra.acc": 0.625, "history.acc": 0.25})
    assert first.stderrs["algebra.acc"] == pytest.approx(math.sqrt(0.625 * 0.375 / 7)) and last.n["algebra.acc"] == 8
    model = model_of(tmp_path, "predictions", groups={"mmlu": "*"})
    assert model.rows[1].values == {"mmlu.acc": 0.625} and model.chance == {"mmlu.acc": 0.25}
    found = checkpoint_verdict(model.scores(), "m", items=lambda _, at: model.outcomes(at))
    assert found is not None and found.previous is not None
    (task,) = found.previous.tasks
    assert task.paired and (task.difference.gained, task.difference.lost, task.difference.n) == (3, 0, 16)


def test_wrong_answers_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "algebra.csv"
    for text, said in (
        ("question,answer\nx,1\n", "line 1: expected the columns .*prediction is missing"),
        ("question,answer,prediction\nx,1,A\ny,?,A\n", "line 3: answer: expected a letter"),
        ("question,answer,prediction\nx,1,A\nx,1,A\n", "line 3: the same question comes twice"),
        ("question,answer,prediction\n", "there is no question"),
    ):
        path.write_text(text)
        with pytest.raises(SourceError, match=rf"algebra\.csv: {said}"):
            model_of(path, "predictions")


def test_ctrl_c_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recorder.wandb_writer.read_model", interrupted)
    config = tmp_path / "c.yaml"
    config.write_text("project: p\nevals: [{source: lm_eval, model_name: x, path: y}]\n")
    assert main(["--config", str(config)]) == 130 and "stopped" in capsys.readouterr().err
