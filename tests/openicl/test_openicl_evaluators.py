"""Metrics with their errors, against the libraries and against hand-made numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import sacrebleu

from autoeval.datasets.rows import Row
from autoeval.openicl.evaluators import build_evaluator, mean_metric
from autoeval.openicl.metric import Metric
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


def scored(name: str, predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Metric]:
    return {m.name: m for m in build_evaluator({"type": name, **options}).score(predictions, references)}


def test_cmrc_counts_characters_and_the_longest_common_run() -> None:
    metrics = scored("CMRCEvaluator", ["光荣和ω-force，开发", "是1998年。"], [["光荣和ω-force"], ["1998 年", "九八年"]])
    assert metrics["f1"].values == (pytest.approx(2 * 5 / (7 + 5)), pytest.approx(2 * 2 / (3 + 2)))
    assert metrics["exact_match"].values == (0.0, 0.0)
    same = scored("CMRCEvaluator", ["《战国无双3》", ""], [["战国无双3"], ["x"]])
    assert same["exact_match"].values == same["f1"].values == (1.0, 0.0)


def test_chinese_rouge_is_that_of_rouge_chinese_over_jiebas_words() -> None:
    import jieba
    from rouge_chinese import Rouge

    text, reference = "今天天气很好，我们去公园", "今天天气不错，我们去公园玩"
    expected = Rouge().get_scores(" ".join(jieba.cut(text)), " ".join(jieba.cut(reference)))[0]
    metrics = scored("JiebaRougeEvaluator", [text, ""], [reference, reference])
    assert metrics["rouge1"].values == (pytest.approx(expected["rouge-1"]["f"]), 0.0)
    assert metrics["rougeL"].values[0] == pytest.approx(expected["rouge-l"]["f"])


def test_matthews_correlation_is_scikit_learns() -> None:
    from sklearn.metrics import matthews_corrcoef

    draw = random.Random(3)
    golds = [draw.choice("ABC") for _ in range(60)]
    texts = [gold if draw.random() < 0.6 else draw.choice("ABC") for gold in golds]
    metrics = scored("MccEvaluator", texts, golds)
    assert metrics["matthews_correlation"].value == pytest.approx(matthews_corrcoef(golds, texts))
    assert 0.03 < metrics["matthews_correlation"].stderr < 0.2
    assert metrics["acc"].value == sum(a == b for a, b in zip(texts, golds, strict=True)) / 60


def test_the_areas_error_is_delongs() -> None:
    from sklearn.metrics import roc_auc_score

    draw = random.Random(5)
    golds = [int(draw.random() < 0.4) for _ in range(80)]
    chances = [min(0.99, max(0.01, draw.gauss(0.4 + 0.2 * gold, 0.2))) for gold in golds]
    metric = scored("AUCROCEvaluator", [[1 - one, one] for one in chances], golds)["auc"]
    assert metric.value == pytest.approx(roc_auc_score(golds, chances))
    resampled = []
    for _ in range(400):
        places = draw.choices(range(80), k=80)
        resampled.append(roc_auc_score([golds[i] for i in places], [chances[i] for i in places]))
    mean = sum(resampled) / 400
    bootstrap = math.sqrt(sum((one - mean) ** 2 for one in resampled) / 399)
    assert metric.stderr == pytest.approx(bootstrap, rel=0.15)
    negatives = [value for value, gold in zip(metric.values, golds, strict=True) if not gold]
    assert sum(negatives) / len(negatives) == pytest.approx(metric.value)
    with pytest.raises(ValueError, match="both classes"):
        scored("AUCROCEvaluator", [[0.5, 0.5]], [1])


def test_numbers_are_compared_as_numbers() -> None:
    values = scored("MATHEvaluator", ["1,234.50", "x = 2.", "$5", "7"], ["1234.5", "x=2", "5.0", "8"])["acc"].values
    assert values == (1.0, 1.0, 1.0, 0.0)


def test_the_mass_of_right_answers() -> None:
    record = {f"label: {i}": {"loglikelihood": math.log(p)} for i, p in enumerate((0.1, 0.3, 0.2))}
    assert scored("MassEvaluator", [record], [["0", "1"]])["mc2"].values == (pytest.approx(0.4 / 0.6),)


def test_truthful_answers_are_nearer_to_a_right_one() -> None:
    row = Row(
        {"correct_answers": ["Nothing happens", "You digest it"], "incorrect_answers": ["You grow a tree"]}, "f:1"
    )
    metrics = scored("TruthfulQAEvaluator", [["nothing happens at all"], ["you grow a big tree"]], [row, row])
    assert metrics["rougeL_acc"].values == metrics["bleu_acc"].values == (1.0, 0.0)


def test_a_corpus_value_and_its_error_are_those_of_the_ratio() -> None:
    draw = random.Random(7)
    records = [{"bytes": size, "words": 5, "nats": size * draw.uniform(0.5, 1.5)} for size in range(50, 150)]
    metric = scored_corpus(records)
    ratio = sum(r["nats"] for r in records) / sum(r["bytes"] for r in records) / math.log(2)
    assert metric.value == pytest.approx(ratio)
    resampled = [scored_corpus(draw.choices(records, k=100)).value for _ in range(400)]
    mean = sum(resampled) / 400
    assert metric.stderr == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in resampled) / 399), rel=0.15)


def scored_corpus(records: list[dict[str, float]]) -> Metric:
    return build_evaluator({"type": "BPBEvaluator"}).score(records)[0]


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"type": "first-option", "options": "ABCD"}, "Let me see, A is out. The answer is (C).", "C"),
        ({"type": "first_option_postprocess", "options": "ABCD"}, "所以答案选 B。", "B"),
        ({"type": "first-option", "options": "ABCD"}, "A选项不对，故选D", "D"),
        ({"type": "first-option", "options": "ABCD"}, "the correct answer is: \\boxed{B}", "B"),
        ({"type": "first-option", "options": "ABCD"}, "ANSWER: D", "D"),
        ({"type": "first-option", "options": "ABCD"}, "**B**", "B"),
        ({"type": "first-option", "options": "ABCD"}, "只有C选项? 只有 C 正确", "C"),
        ({"type": "first-option", "options": "AB"}, "no idea", ""),
        ({"type": "first-option", "options": "AB"}, "xB", "B"),
        ({"type": "first-option", "options": "AB", "cushion": False}, "xB", ""),
        ({"type": "last-option", "options": "ABC"}, "A or B, rather B than C", "C"),
        ({"type": "last-capital"}, "the A or b", "A"),
        ({"type": "multiple-select"}, "C and A, C", "AC"),
        ({"type": "cmrc"}, "根据文章，答案是：光荣\n下一题", "光荣"),
        ({"type": "cmrc"}, "光荣", "光荣"),
        ({"type": "general_cn"}, "今天天气。很好", "今天天气"),
        ({"type": "bbh-mcq"}, "We look. So the answer is (D).", "D"),
        ({"type": "bbh-freeform"}, "So the answer is ] ] >.\nQ:", "] ] >"),
        ({"type": "extract-non-reasoning-content"}, "<think>A? B?</think> C", "C"),
        ({"type": "extract-non-reasoning-content"}, "A? B?</think> C", "C"),
        ({"type": "match_answer_pattern", "answer_pattern": r"(?i)answer: (\w)"}, "ANSWER: b", "b"),
        ({"type": "to-letter", "labels": ["no", "yes"]}, "yes", "B"),
        ({"type": "first-number"}, "-.5 or 3", "-.5"),
    ],
)
def test_post_processors_with_options(options: dict[str, Any], text: str, expected: str) -> None:
    assert " ".join(build_postprocessor(options)(text).split()) == expected


def test_a_post_processor_with_wrong_options_is_refused() -> None:
    with pytest.raises(ValueError, match="first-option"):
        build_postprocessor({"type": "first-option"})
    with pytest.raises(ValueError, match="colour"):
        build_postprocessor({"type": "last-option", "options": "AB", "colour": 1})
