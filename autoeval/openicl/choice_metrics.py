"""Metrics of decisions: accuracy, correlation, ranking, probability mass, and the cost of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoeval.openicl.metric import Metric, Reference, accepted, bootstrap_stderr, mean_metric, ratio_metric
from autoeval.openicl.postprocessors import bbh_free


class AccEvaluator:
    """``acc``: the prediction is the reference, character by character."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        pairs = zip(predictions, references, strict=True)
        return [mean_metric("acc", [float(text in accepted(reference)) for text, reference in pairs])]


class BBHEvaluator(AccEvaluator):
    """``acc`` of what stands after "answer is", for OpenCompass's tasks of BIG-Bench Hard without choices."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        return super().score([bbh_free(text) for text in predictions], references)


class MccEvaluator:
    """``acc`` and ``matthews_correlation`` (scikit-learn's, for any number of classes; standard error by bootstrap)."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        from sklearn.metrics import matthews_corrcoef

        golds = [accepted(reference)[0] for reference in references]
        accuracy = AccEvaluator().score(predictions, golds)[0]

        def correlation(chosen: Sequence[int]) -> float:
            return float(matthews_corrcoef([golds[i] for i in chosen], [predictions[i] for i in chosen]))

        value = correlation(range(len(golds)))
        stderr = bootstrap_stderr(correlation, len(golds), resamples=200)
        return [Metric("matthews_correlation", accuracy.values, value, stderr, is_mean=False), accuracy]


class AUCROCEvaluator:
    """``auc`` of the second choice's probability, and ``acc``, from ``CLPInferencer``.

    An item's value is its placement: the share of items of the other class that it is on the right side of, ties half.
    The AUC is their mean over either class; its standard error is DeLong's.
    """

    wants = "probabilities"

    def score(self, predictions: Sequence[Sequence[float]], references: Sequence[int]) -> list[Metric]:
        if any(len(one) != 2 for one in predictions):
            raise ValueError("AUCROCEvaluator needs two choices")
        positive = [i for i, gold in enumerate(references) if gold == 1]
        negative = [i for i, gold in enumerate(references) if gold == 0]
        if not positive or not negative:
            raise ValueError("the AUC needs items of both classes")
        scores = [one[1] for one in predictions]
        values = [0.0] * len(scores)
        for mine, others, sign in ((positive, negative, 1), (negative, positive, -1)):
            for i in mine:
                wins = [(scores[i] - scores[j]) * sign for j in others]
                values[i] = sum(1.0 if win > 0 else 0.5 if win == 0 else 0.0 for win in wins) / len(wins)
        parts = [mean_metric("", [values[i] for i in group]) for group in (positive, negative)]
        errors = [part.stderr for part in parts if part.stderr is not None]
        stderr = math.hypot(*errors) if len(errors) == 2 else None
        right = [float(one.index(max(one)) == gold) for one, gold in zip(predictions, references, strict=True)]
        return [Metric("auc", tuple(values), parts[0].value, stderr, is_mean=False), mean_metric("acc", right)]


class MassEvaluator:
    """``mc2``: the share of probability that continuations of right labels have (TruthfulQA's MC2). ``LLInferencer``."""

    wants = "records"

    def score(self, records: Sequence[Mapping[str, Any]], golds: Sequence[Sequence[str]]) -> list[Metric]:
        values = []
        for record, right in zip(records, golds, strict=True):
            found = {
                str(key).removeprefix("label: "): one["loglikelihood"]
                for key, one in record.items()
                if str(key).startswith("label: ")
            }
            highest = max(found.values())
            weights = {label: math.exp(value - highest) for label, value in found.items()}
            values.append(math.fsum(weights[label] for label in right) / math.fsum(weights.values()))
        return [mean_metric("mc2", values)]


class GreedyEvaluator:
    """Of a single continuation (``LLInferencer`` without choices): ``acc``, whether greedy decoding would have given it,
    ``bpb``, its bits per byte, and ``perplexity``, exp of minus the mean log-likelihood (LAMBADA's metrics)."""

    wants = "records"

    def score(self, records: Sequence[Mapping[str, Any]], golds: Sequence[Sequence[str]]) -> list[Metric]:
        found = [record[f"label: {right[0]}"] for record, right in zip(records, golds, strict=True)]
        nats = [-one["loglikelihood"] for one in found]
        return [
            mean_metric("acc", [float(one["greedy"]) for one in found]),
            mean_metric("bpb", [one["BPB"] for one in found], higher_is_better=False),
            ratio_metric("perplexity", nats, [1.0] * len(nats), _exp, _exp),
        ]


class BPBEvaluator:
    """``bpb`` (bits per UTF-8 byte), ``byte_perplexity`` and ``word_perplexity`` of a corpus. ``PPLOnlyInferencer``.

    Of the whole corpus (sum over sum), as lm-evaluation-harness; each text's own value with it.
    """

    def score(self, records: Sequence[Mapping[str, Any]]) -> list[Metric]:
        nats = [record["nats"] for record in records]
        sizes = [record["bytes"] for record in records]
        words = [max(1, record["words"]) for record in records]
        return [
            ratio_metric("bpb", nats, sizes, lambda rate: rate / math.log(2), lambda _: 1 / math.log(2)),
            ratio_metric("byte_perplexity", nats, sizes, _exp, _exp),
            ratio_metric("word_perplexity", nats, words, _exp, _exp),
        ]


def _exp(rate: float) -> float:
    return math.exp(min(rate, 700.0))  # a float's end, for single words that a model finds impossible
