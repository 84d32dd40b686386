"""Evaluators: predictions and references to metrics, with every item's value and a standard error.

Values are in 0..1 (OpenCompass's 0..100 belongs to its tables). OpenICL's class names. Metrics come from sacrebleu and
rouge-score; only exact match and token F1 (SQuAD's definition, arXiv 1606.05250) are computed here.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoeval.datasets.names import look_up
from autoeval.openicl.postprocessors import general

Reference = str | Sequence[str]  # several: any of them counts as right


@dataclass(frozen=True)
class Metric:
    """``values`` has one entry per item, in order. ``stderr`` is None for a single item."""

    name: str
    values: tuple[float, ...]
    value: float
    stderr: float | None
    higher_is_better: bool = True
    is_mean: bool = True  # of ``values``


def mean_metric(name: str, values: Sequence[float]) -> Metric:
    """The mean with its standard error, from the sample variance (n - 1)."""
    count = len(values)
    mean = math.fsum(values) / count
    stderr = None
    if count > 1:
        stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Metric(name, tuple(values), mean, stderr)


class AccEvaluator:
    """``acc``: the prediction is the reference, character by character."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        pairs = zip(predictions, references, strict=True)
        return [mean_metric("acc", [float(text in accepted(reference)) for text, reference in pairs])]


class EMEvaluator:
    """``exact_match``: equal to a reference as it is, or after ``general`` on both (OpenCompass's rule)."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        values = []
        for text, reference in zip(predictions, references, strict=True):
            right = accepted(reference)
            values.append(float(text in right or general(text) in [general(one) for one in right]))
        return [mean_metric("exact_match", values)]


class F1Evaluator:
    """``f1``: token F1 after SQuAD's normalisation, the best over the references."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        return [mean_metric("f1", _best(token_f1, predictions, references))]


class SquadEvaluator:
    """``f1`` and ``exact_match`` as SQuAD defines them, the best over the references."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        def equal(text: str, reference: str) -> float:
            return float(squad_normalize(text) == squad_normalize(reference))

        return [
            mean_metric("f1", _best(token_f1, predictions, references)),
            mean_metric("exact_match", _best(equal, predictions, references)),
        ]


class RougeEvaluator:
    """``rouge1``, ``rouge2``, ``rougeL`` (F-measure, no stemming), the best over the references."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        from rouge_score.rouge_scorer import RougeScorer

        names = ["rouge1", "rouge2", "rougeL"]
        scorer = RougeScorer(names, use_stemmer=False)
        scored = [
            [scorer.score(target=one, prediction=text) for one in accepted(reference)]
            for text, reference in zip(predictions, references, strict=True)
        ]
        return [mean_metric(name, [max(one[name].fmeasure for one in item) for item in scored]) for name in names]


class BleuEvaluator:
    """``bleu``: corpus BLEU of sacrebleu. Items carry their sentence BLEU; the corpus value is not their mean.

    The standard error is a bootstrap over items with a fixed seed.
    """

    def __init__(self, tokenize: str = "13a", resamples: int = 1000) -> None:
        self.tokenize = tokenize
        self.resamples = resamples

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        from sacrebleu.metrics.bleu import BLEU

        measure = BLEU(tokenize=self.tokenize, effective_order=True)
        items = [
            measure.sentence_score(text, accepted(reference))
            for text, reference in zip(predictions, references, strict=True)
        ]

        def corpus(chosen: Sequence[int]) -> float:
            counts = [sum(items[i].counts[order] for i in chosen) for order in range(4)]
            totals = [sum(items[i].totals[order] for i in chosen) for order in range(4)]
            ours, theirs = sum(items[i].sys_len for i in chosen), sum(items[i].ref_len for i in chosen)
            return BLEU.compute_bleu(counts, totals, ours, theirs, smooth_method="exp").score / 100

        everything = range(len(items))
        stderr = None
        if len(items) > 1:
            draw = random.Random(0)
            samples = [corpus(draw.choices(everything, k=len(items))) for _ in range(self.resamples)]
            mean = math.fsum(samples) / len(samples)
            stderr = math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / (len(samples) - 1))
        return [Metric("bleu", tuple(item.score / 100 for item in items), corpus(everything), stderr)]


def accepted(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else [str(one) for one in reference]


def squad_normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of token precision and recall; two empty answers agree."""
    predicted, expected = squad_normalize(text).split(), squad_normalize(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def _best(
    measure: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Reference]
) -> list[float]:
    pairs = zip(predictions, references, strict=True)
    return [max(measure(text, one) for one in accepted(reference)) for text, reference in pairs]


EVALUATORS: dict[str, type] = {
    "AccEvaluator": AccEvaluator,
    "EMEvaluator": EMEvaluator,
    "F1Evaluator": F1Evaluator,
    "SquadEvaluator": SquadEvaluator,
    "RougeEvaluator": RougeEvaluator,
    "BleuEvaluator": BleuEvaluator,
}


def build_evaluator(options: Mapping[str, Any], *, allow_code_execution: bool = False) -> Any:
    """From ``dict(type="AccEvaluator")``. ``allow_code_execution`` is for those that run what a model wrote."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(EVALUATORS, options.get("type", ""), "evaluator")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"evaluator {chosen.__name__}: {error}") from error
