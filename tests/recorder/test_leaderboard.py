"""Statistics, baselines and the leaderboard, against figures worked out by hand or printed elsewhere."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

import pytest

from recorder.baselines import Baseline, BaselinesError, load_baselines
from recorder.leaderboard import leaderboard, metric_columns, write_leaderboard_csv
from recorder.ledger import ScoreRow
from recorder.statistics import (
    exact_mcnemar,
    holm,
    mean_difference,
    paired_difference,
    score_interval,
    sign_flip_test,
    standard_error,
    wilson_interval,
)


def score(model: str, iteration: int, key: str, value: float, **changes) -> ScoreRow:
    task, metric = key.split(".")
    row = ScoreRow(
        model, iteration, iteration / 1000, task, "v", metric, value, 0.03, 100, True, "icl", False, 0.0, None, "f", 0
    )
    return row._replace(**changes)


def test_baselines_alone_are_ranked_too() -> None:
    published = [
        Baseline("weak", 10, {"mmlu.EM": 0.26, "boolq.acc": 0.5, "boolq.f1": 0.9, "wikitext.ppl": 21.0}, ""),
        Baseline("strong", 300, {"mmlu.EM": 0.60, "boolq.acc": 0.8}, ""),
    ]
    rows = leaderboard([], published)
    assert [(row.model, row.rank, row.score) for row in rows] == [
        ("strong", 1, pytest.approx(0.7)),
        ("weak", 2, pytest.approx(0.38)),
    ]
    assert rows[0].averaged == ("boolq.acc", "mmlu.EM")


def test_a_published_percentage_is_not_averaged_with_shares() -> None:
    rows = leaderboard([score("gpt", 1000, "mmlu.EM", 0.3)], [Baseline("percent", 10, {"mmlu.EM": 26.0}, "")])
    assert [(row.model, row.score, row.rank) for row in rows] == [
        ("gpt", pytest.approx(0.3), 1),
        ("percent", None, None),
    ]


def test_two_versions_of_a_task_are_not_compared() -> None:
    """One model was measured with an older prompt: its figure is of another task, though the name is the same."""
    older = score("finished", 9000, "mmlu.EM", 0.9, task_version="old", recorded_at=1.0)
    newer = score("gpt", 1000, "mmlu.EM", 0.3, task_version="new", recorded_at=2.0)
    same = [score(model, 1000, "boolq.acc", 0.5) for model in ("finished", "gpt")]
    rows = {row.model: row for row in leaderboard([older, newer, *same])}
    assert "mmlu.EM" not in rows["finished"].metrics
    assert rows["gpt"].averaged == rows["finished"].averaged


def test_wilson_equals_the_published_example() -> None:
    low, high = wilson_interval(0.0, 10)  # 1.96^2 / (10 + 1.96^2)
    assert low == 0.0 and high == pytest.approx(0.27753, abs=1e-5)
    low, high = wilson_interval(81 / 263, 263)  # Newcombe 1998, Statistics in Medicine 17:857, method 3
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


def test_mcnemar_equals_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in ((0, 0), (1, 0), (5, 5), (31, 12), (2, 9), (700, 600)):
        expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert exact_mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_standard_error_of_a_mean() -> None:
    assert standard_error([1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt((1 / 3) / 4))
    assert standard_error([1.0]) is None


def test_pairing_sees_what_two_intervals_hide() -> None:
    """30 of 1,000 items gained and none lost: intervals of 0.50 and 0.53 overlap, the paired one excludes 0."""
    old = {str(i): float(i < 500) for i in range(1000)}
    new = {str(i): float(i < 530) for i in range(1000)}
    found = paired_difference(new, old)
    assert found is not None and found.verdict == "better" and (found.gained, found.lost) == (30, 0)
    assert found.value == pytest.approx(0.03) and found.stderr == pytest.approx(0.0053972, abs=1e-6)
    assert wilson_interval(0.53, 1000)[0] < wilson_interval(0.50, 1000)[1]
    back = paired_difference(old, new)
    assert back is not None and back.verdict == "worse"


def test_flipped_signs_equal_mcnemar_and_the_worked_example() -> None:
    for gained, lost in ((3, 0), (5, 2), (6, 6)):
        assert sign_flip_test([1.0] * gained + [-1.0] * lost + [0.0] * 50) == pytest.approx(exact_mcnemar(gained, lost))
    assert sign_flip_test([1.0] * 31 + [-1.0] * 12) == pytest.approx(exact_mcnemar(31, 12), abs=3e-3)
    assert sign_flip_test([0.5, 0.25, 0.75]) == 2 / 8  # all up: only + + + and - - - are as large
    assert sign_flip_test([0.0, 0.0]) == 1.0
    big = [1.0] * 1100 + [-1.0] * 1000
    assert sign_flip_test(big) == pytest.approx(exact_mcnemar(1100, 1000), abs=3e-3)


def test_two_items_prove_nothing() -> None:
    """The interval of two alike gains is narrow, which says nothing: each sign comes up in one of two throws."""
    found = paired_difference({"a": 0.50, "b": 0.51}, {"a": 0.2, "b": 0.2})
    assert found is not None and found.low > 0 and found.verdict == "cannot tell"


def test_holm_equals_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_score_without_spread_has_an_error_bar_all_the_same() -> None:
    (row,) = leaderboard([score("gpt", 1000, "a.acc", 1.0, stderr=0.0, n=100)])
    assert row.stderr is not None and 1.0 - 1.959964 * row.stderr == pytest.approx(wilson_interval(1.0, 100)[0])


def test_the_same_answers_are_no_verdict() -> None:
    answers = {str(i): float(i % 2) for i in range(10)}
    found = paired_difference(answers, answers)
    assert found is not None and found.verdict == "cannot tell" and found.detectable > 0.0
    assert paired_difference(answers, {"elsewhere": 1.0}) is None


def test_better_is_seldom_said_when_nothing_changed() -> None:
    """Two checkpoints of equal skill, 400 times: at most one in twenty may be called better or worse (5 % + noise)."""
    rng = random.Random(7)
    wrong = 0
    for _ in range(400):
        skill = [rng.random() for _ in range(100)]
        new, old = ({str(i): float(rng.random() < p) for i, p in enumerate(skill)} for _ in range(2))
        found = paired_difference(new, old)
        assert found is not None
        wrong += found.verdict != "cannot tell"
    assert wrong <= 400 * 0.05 + 2 * math.sqrt(400 * 0.05 * 0.95)


def test_differences_of_tasks_are_averaged_with_their_error() -> None:
    one = paired_difference({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0})
    assert one is not None
    both = mean_difference([one, one])
    assert both is not None and both.value == one.value and both.stderr == pytest.approx(one.stderr / math.sqrt(2))


def test_a_score_of_zero_still_has_an_error_bar() -> None:
    interval = score_interval(0.0, 0.0, 50)
    assert interval is not None and interval[0] == pytest.approx(0.0) and interval[1] == pytest.approx(0.0714, abs=1e-3)
    assert score_interval(2.5, 0.1, 50) == (pytest.approx(2.304, abs=1e-3), pytest.approx(2.696, abs=1e-3))
    assert score_interval(0.5, None, 50) is None


def test_score_is_the_chance_corrected_mean_over_shared_tasks() -> None:
    scores = [
        score("gpt", 1000, "choice.acc", 0.40, chance=0.25),
        score("gpt", 1000, "text.EM", 0.10),
        score("gpt", 1000, "only_here.acc", 0.9),
        score("gpt", 1000, "text.bpb", 1.1, higher_is_better=False, position=1),
    ]
    rows = leaderboard(scores, [Baseline("big", 300.0, {"choice.acc": 0.70, "text.EM": 0.30}, "a paper")])
    assert [(row.model, row.rank, row.is_baseline) for row in rows] == [("big", 1, True), ("gpt", 2, False)]
    assert rows[0].score == pytest.approx((0.6 + 0.3) / 2) and rows[0].stderr is None
    assert rows[1].score == pytest.approx((0.2 + 0.1) / 2)
    assert rows[1].stderr == pytest.approx(math.hypot(0.03 / 0.75, 0.03) / 2)
    assert rows[1].averaged == ("choice.acc", "text.EM") and rows[1].metrics["text.bpb"] == 1.1


def test_half_an_evaluation_does_not_stand_for_a_model() -> None:
    scores = [score("gpt", i, f"{task}.acc", v) for i, v in ((1000, 0.6), (2000, 0.5)) for task in ("a", "b")]
    scores.append(score("gpt", 3000, "a.acc", 1.0))
    (latest,) = leaderboard(scores)
    assert (latest.iteration, latest.score) == (2000, pytest.approx(0.5))
    (best,) = leaderboard(scores, which="best")
    assert (best.iteration, best.score) == (1000, pytest.approx(0.6))
    assert [row.iteration for row in leaderboard(scores, which="all")] == [1000, 2000]


def test_a_baseline_of_other_tasks_is_shown_without_a_rank() -> None:
    rows = leaderboard(
        [score("gpt", 1, "a.acc", 0.5), score("gpt", 1, "b.acc", 0.5)], [Baseline("x", None, {"z.acc": 0.9}, "")]
    )
    assert [(row.model, row.rank) for row in rows] == [("gpt", 1), ("x", None)]
    assert rows[0].averaged == ("a.acc", "b.acc")


def test_the_metric_that_baselines_know_enters_the_score() -> None:
    scores = [score("gpt", 1, "a.acc", 0.5), score("gpt", 1, "a.acc_norm", 0.6, position=1)]
    assert leaderboard(scores)[0].averaged == ("a.acc",)
    assert leaderboard(scores, [Baseline("x", None, {"a.acc_norm": 0.9}, "")])[0].averaged == ("a.acc_norm",)


def test_equal_scores_share_a_rank() -> None:
    rows = leaderboard([score(m, 1, "a.acc", v) for m, v in (("p", 0.5), ("q", 0.5), ("r", 0.4))])
    assert [row.rank for row in rows] == [1, 1, 3]


def test_the_csv_is_the_same_table(tmp_path: Path) -> None:
    rows = leaderboard([score("gpt, the small", 2000, "a.acc", 0.5)], [Baseline("x", 3.0, {"a.acc": 0.75}, "")])
    write_leaderboard_csv(tmp_path / "leaderboard.csv", rows, metric_columns(rows))
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.reader(stream))
    assert table == [
        ["model", "iteration", "tokens", "score", "stderr", "rank", "a.acc", "a.acc_stderr"],
        ["x", "", "3.0", "0.75", "", "1", "0.75", ""],
        ["gpt, the small", "2000", "2.0", "0.5", "0.03", "2", "0.5", "0.03"],
    ]


def test_an_empty_ledger_has_an_empty_board(tmp_path: Path) -> None:
    assert leaderboard([]) == []
    write_leaderboard_csv(tmp_path / "leaderboard.csv", [], [])
    assert (tmp_path / "leaderboard.csv").read_text() == "model,iteration,tokens,score,stderr,rank\n"


def test_baselines_in_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "baselines.yaml"
    path.write_text(
        "models:\n- {name: a, tokens: 10, source: table 2, values: {mmlu.EM: 0.3, mmlu.EM_stderr: 0.01}}\n"
        "evals:\n- {eval_type: helm, source: file, model_name: b, token_num: 300, eval_result: {mmlu: {EM: 0.26}}}\n"
        "- {eval_type: helm, source: helm, model_name: c, helm_output_dir: /x}\n"
    )
    assert load_baselines(path) == [
        Baseline("a", 10.0, {"mmlu.EM": 0.3}, "table 2", {"mmlu.EM": 0.01}),
        Baseline("b", 300.0, {"mmlu.EM": 0.26}, ""),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a", "expected a mapping with the key 'models'"),
        ("models: [{name: a, values: {mmlu.EM: high}}]", r"models\[0\]\.values\.mmlu\.EM: expected a finite number"),
        ("models: [{name: a, values: {mmlu: 0.3}}]", r"models\[0\]\.values\.mmlu: expected a key of the form"),
        ("models: [{tokens: 1, values: {}}]", r"models\[0\]\.name: expected the model's name"),
        ("models: [{name: a, vals: {}}]", r"models\[0\]\.vals: unknown key"),
        ("evals: [{source: file, model_name: b}]", r"evals\[0\]\.eval_result: expected a mapping"),
        ("models: [", "cannot be read as YAML"),
        ("models: [{name: a, values: {x.y: 1}}, {name: a, values: {x.y: 1}}]", "'a' comes twice"),
    ],
)
def test_a_wrong_baselines_file_is_named_with_its_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "baselines.yaml"
    path.write_text(text)
    with pytest.raises(BaselinesError, match=expected) as caught:
        load_baselines(path)
    assert str(path) in str(caught.value)
