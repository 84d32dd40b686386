"""The board: what stands for a model, ties inside the noise, min-max, and the quick way to it from a large ledger."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recorder.baselines import Baseline
from recorder.board import Choice, board_of, build_board, remember_choice, remembered_choice
from recorder.leaderboard import leaderboard
from recorder.ledger import Ledger, ScoreRow
from recorder.published_models import PublishedModel, PublishedRow, courses, levels
from recorder.results import CheckpointRef, Score, TaskResult


def score(model: str, iteration: int, key: str, value: float, **changes) -> ScoreRow:
    task, metric = key.split(".")
    row = ScoreRow(model, iteration, None, task, "v", metric, value, 0.03, 100, True, "icl", False, 0.0, None, "f", 0)
    return row._replace(**changes)


def test_ranks_tie_inside_the_noise() -> None:
    """Standard errors of 0.03: 0.04 is nothing, 0.12 is something; r is worse than p and not shown to be than q."""
    rows = leaderboard([score(m, 1, "a.acc", v) for m, v in (("p", 0.56), ("q", 0.52), ("r", 0.45), ("s", 0.30))])
    assert [(row.model, row.rank) for row in rows] == [("p", 1), ("q", 1), ("r", 2), ("s", 4)]


def test_a_figure_without_an_error_counts_as_exact() -> None:
    rows = leaderboard(
        [score("gpt", 1, "a.acc", 0.50)], [Baseline("near", None, {"a.acc": 0.55}, ""), Baseline("far", None, {"a.acc": 0.57}, "")]
    )  # fmt: skip
    assert [(row.model, row.rank) for row in rows] == [("far", 1), ("near", 2), ("gpt", 2)]


def course() -> list[ScoreRow]:
    return [score("gpt", at, "a.acc", v) for at, v in ((1000, 0.2), (2000, 0.6), (3000, 0.4))] + [
        score("other", at, "a.acc", v) for at, v in ((1000, 0.3), (2000, 0.35))
    ]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"gpt": 3000, "other": 2000}),
        ({"gpt": "best"}, {"gpt": 2000, "other": 2000}),
        ({"gpt": 1000, "other": 1000}, {"gpt": 1000, "other": 1000}),
        ({"gpt": 1500}, {"other": 2000}),
    ],
)
def test_any_iteration_stands_for_a_model(chosen: dict, expected: dict[str, int]) -> None:
    assert {row.model: row.iteration for row in leaderboard(course(), chosen=chosen)} == expected


def test_minmax_takes_what_chance_correction_cannot() -> None:
    """Worst 0, best 1 on each task: also for a metric that is better when lower or above 1; no one is divided by 0."""
    scores = [
        score("p", 1, "choice.acc", 0.5),
        score("q", 1, "choice.acc", 0.7),
        score("p", 1, "text.ppl", 20.0, higher_is_better=False, stderr=1.0),
        score("q", 1, "text.ppl", 30.0, higher_is_better=False, stderr=1.0),
        score("p", 1, "same.acc", 0.4),
        score("q", 1, "same.acc", 0.4),
        score("p", 1, "gen.bleu", 12.0, stderr=0.5),
        score("q", 1, "gen.bleu", 22.0, stderr=0.5),
    ]
    rows = leaderboard(scores, scoring="minmax")
    assert {row.model: row.score for row in rows} == {"q": pytest.approx(2 / 3), "p": pytest.approx(1 / 3)}
    assert rows[0].averaged == ("choice.acc", "gen.bleu", "text.ppl")  # all are alike on the fourth
    alone = leaderboard([row for row in scores if row.model == "p"], scoring="minmax")
    assert alone[0].score is None and alone[0].rank is None  # nobody to compare with, and no division by zero
    assert leaderboard(scores)[0].averaged == ("choice.acc", "same.acc")


def test_minmax_does_not_put_percentages_beside_shares() -> None:
    rows = leaderboard(
        [score("p", 1, "a.acc", 0.5), score("q", 1, "a.acc", 0.6)], [Baseline("x", None, {"a.acc": 26.0}, "")], scoring="minmax"
    )  # fmt: skip
    assert all(row.score is None for row in rows)


def level(name: str, piqa: float, loss: float) -> PublishedModel:
    row = PublishedRow(0, None, {"piqa.acc": piqa, "text.brier_score": loss})
    return PublishedModel(name, "", (row,), {"piqa.acc": 0.5}, ("text.brier_score",))


def test_guessing_is_0_though_nobody_has_a_course() -> None:
    """Single rows of other harnesses know what guessing gives, and that a Brier score is better when lower."""
    rows = leaderboard([], levels([level("p", 0.5, 0.2), level("q", 0.75, 0.9)]))
    assert [(row.model, row.score, row.averaged) for row in rows] == [
        ("q", pytest.approx(0.5), ("piqa.acc",)),
        ("p", pytest.approx(0.0), ("piqa.acc",)),
    ]
    rows = leaderboard([], levels([level("p", 0.5, 0.2), level("q", 0.5, 0.9)]), scoring="minmax")
    assert [(row.model, row.score) for row in rows] == [("p", 1.0), ("q", 0.0)]
    ours = [score("gpt", 1, "piqa.acc", 0.75), score("gpt", 1, "text.brier_score", 0.1, position=1)]
    assert {row.model: row.score for row in leaderboard(ours, levels([level("p", 0.5, 0.2)]))} == {"gpt": 0.5, "p": 0.0}


def test_an_excluded_model_is_no_part_of_the_cohort() -> None:
    scores = [score(m, 1, "a.acc", v) for m, v in (("p", 0.2), ("q", 0.4), ("r", 0.9))]
    board = build_board(scores, [], Choice(excluded=("r",), scoring="minmax"))
    assert [(row.model, row.score) for row in board.rows] == [("q", 1.0), ("p", 0.0)]


def test_the_choice_is_remembered_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    choice = Choice(("a.acc",), ("x",), (("gpt", 2000), ("other", "best")), "minmax")
    remember_choice(ledger, choice)
    assert remembered_choice(ledger) == choice
    ledger.close()


@pytest.mark.parametrize("seed", range(6))
def test_the_quick_board_is_the_board(tmp_path: Path, seed: int) -> None:
    """Random ledgers: checkpoints that lack tasks, that were saved again, tasks in two versions, metrics that leave
    [0, 1] at one iteration only; models measured elsewhere beside them."""
    rng = random.Random(seed)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for model in ("gpt", "other"):
        for iteration in rng.sample(range(1000, 9000, 1000), 6):
            for save in range(1 + (rng.random() < 0.2)):
                ref = CheckpointRef(model, iteration, f"f{save}", "/x", iteration / 1000)
                ledger.note_checkpoint(ref, "evaluated")
                for task in ("a", "b", "c"):
                    if rng.random() < 0.85:
                        version = "v2" if rng.random() < 0.3 else "v1"
                        odd = 1.2 if rng.random() < 0.05 else rng.random()
                        found = (Score("odd", odd, 0.02, 50), Score("acc", rng.random(), 0.02, 50, chance=0.25))
                        ledger.ingest(TaskResult(ref, task, version, "icl", found))
    models = [
        PublishedModel("course", "", tuple(PublishedRow(at, None, {"a.acc": at / 9, "b.acc": 0.5}) for at in (1, 5))),
        PublishedModel("level", "", (PublishedRow(0, 3.0, {"a.acc": 0.5, "b.acc": 0.4, "c.acc": 0.3}),)),
    ]
    for choice in (
        Choice(),
        Choice(iterations=(("gpt", "best"), ("other", 3000))),
        Choice(scoring="minmax"),
        Choice(excluded=("other",)),
        Choice(excluded=("gpt", "level")),
        Choice(metrics=("a.odd", "b.acc", "c.acc")),
    ):
        whole = build_board([*ledger.scores(), *courses(models)], levels(models), choice)
        assert board_of(ledger, models, choice).rows == whole.rows
    ledger.close()
