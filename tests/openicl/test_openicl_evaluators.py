"""Metrics with their errors, against the libraries and against hand-made numbers."""

from __future__ import annotations

import math
import random

import pytest
import sacrebleu

from autoeval.openicl.evaluators import build_evaluator, mean_metric
from autoeval.openicl.postprocessors import build_postprocessor


def test_a_mean_has_the_standard_error_of_its_sample() -> None:
    metric = mean_metric("acc", [1.0, 0.0, 1.0, 1.0])
    assert metric.value == 0.75
    assert metric.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert mean_metric("acc", [1.0]).stderr is None


def test_accuracy_and_exact_match() -> None:
    assert build_evaluator({"type": "AccEvaluator"}).score(["A", "B"], ["A", "C"])[0].values == (1.0, 0.0)
    metric = build_evaluator({"type": "EMEvaluator"}).score(
        ["The Paris.", "rome", "oslo"], ["paris", ["Milan", "Rome"], "x"]
    )[0]
    assert (metric.name, metric.values) == ("exact_match", (1.0, 1.0, 0.0))


def test_squad_takes_the_best_reference() -> None:
    f1, exact = build_evaluator({"type": "SquadEvaluator"}).score(
        ["the big red cat", "no"], [["a dog", "a red cat"], "yes"]
    )
    assert f1.values == (pytest.approx(2 * 2 / (3 + 2)), 0.0)
    assert exact.values == (0.0, 0.0)
    assert build_evaluator({"type": "F1Evaluator"}).score([""], ["the"])[0].values == (1.0,)


def test_rouge_is_that_of_rouge_score() -> None:
    metrics = {m.name: m for m in build_evaluator({"type": "RougeEvaluator"}).score(["a b c d"], [["a b x d"]])}
    assert metrics["rouge1"].value == pytest.approx(0.75)
    assert metrics["rougeL"].value == pytest.approx(0.75)
    assert metrics["rouge2"].value == pytest.approx(1 / 3)


def test_bleu_is_that_of_sacrebleu_with_a_stable_error() -> None:
    draw = random.Random(1)
    references = [" ".join(draw.choices("abcdefg", k=12)) for _ in range(30)]
    texts = [" ".join(word if draw.random() < 0.8 else "z" for word in text.split()) for text in references]
    evaluator = build_evaluator({"type": "BleuEvaluator", "resamples": 200})
    metric, again = evaluator.score(texts, references)[0], evaluator.score(texts, references)[0]
    assert metric.value == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score / 100)
    assert metric.stderr == again.stderr and 0 < metric.stderr < 0.1
    assert len(metric.values) == 30


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("general", "The  Answer, it is", "Answer"),
        ("first-capital", " the B or A", "B"),
        ("first-capital-multi", "it is AC", "AC"),
        ("first_number", "about 1,200.50 or 7", "1200.5"),
        ("gsm8k", "so 3 and -4.\nQuestion: 9", "-4"),
        ("gsm8k_dataset", "because\n#### 1,080", "1080"),
        ("lambada", " signs. And", "signs"),
    ],
)
def test_post_processors(name: str, text: str, expected: str) -> None:
    assert build_postprocessor({"type": name})(text) == expected


def test_an_unknown_evaluator_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'AccEvaluator'"):
        build_evaluator({"type": "AccEvaluatr"})
    with pytest.raises(ValueError, match="did you mean 'first-capital'"):
        build_postprocessor({"type": "first_kapital"})
