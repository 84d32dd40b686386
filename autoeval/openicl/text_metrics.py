"""Metrics of generated texts. BLEU and ROUGE are those of sacrebleu, rouge-score and rouge-chinese."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from difflib import SequenceMatcher
from typing import Any

from autoeval.openicl.chinese import jieba
from autoeval.openicl.metric import Metric, Reference, accepted, best, bootstrap_stderr, mean_metric
from autoeval.openicl.postprocessors import general

_ROUGES = ("rouge1", "rouge2", "rougeL")


class EMEvaluator:
    """``exact_match``: equal to a reference as it is, or after ``general`` on both, whatever the case."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        values = []
        for text, reference in zip(predictions, references, strict=True):
            right = accepted(reference)
            values.append(float(text in right or _folded(text) in map(_folded, right)))
        return [mean_metric("exact_match", values)]


class F1Evaluator:
    """``f1``: token F1, the best over the references.

    ``tokenize``: ``squad`` (words after SQuAD's normalisation) or ``zh`` (Chinese characters, and words of other scripts).
    """

    def __init__(self, tokenize: str = "squad") -> None:
        if tokenize not in ("squad", "zh"):
            raise ValueError(f"F1Evaluator: tokenize {tokenize!r}: expected squad or zh")
        self._of_pair = token_f1 if tokenize == "squad" else unit_f1

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        return [mean_metric("f1", best(self._of_pair, predictions, references))]


class SquadEvaluator:
    """``f1`` and ``exact_match`` as SQuAD defines them (arXiv 1606.05250), the best over the references."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        def equal(text: str, reference: str) -> float:
            return float(squad_normalize(text) == squad_normalize(reference))

        return [
            mean_metric("f1", best(token_f1, predictions, references)),
            mean_metric("exact_match", best(equal, predictions, references)),
        ]


class CMRCEvaluator:
    """``f1`` and ``exact_match`` as CMRC 2018 defines them (arXiv 1810.07366), the best over the references.

    Chinese characters and words of other scripts are the units, punctuation is left out; F1 is that of the longest
    common run of units.
    """

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        def equal(text: str, reference: str) -> float:
            return float("".join(units(text)) == "".join(units(reference)))

        return [
            mean_metric("f1", best(run_f1, predictions, references)),
            mean_metric("exact_match", best(equal, predictions, references)),
        ]


class MATHEvaluator:
    """``acc``: the same number (within 1e-6), or the same text without spaces and a final full stop."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        return [mean_metric("acc", best(same_answer, predictions, references))]


class RougeEvaluator:
    """``rouge1``, ``rouge2``, ``rougeL`` (F-measure, no stemming), the best over the references."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(_ROUGES), use_stemmer=False)
        scored = [
            [scorer.score(target=one, prediction=text) for one in accepted(reference)]
            for text, reference in zip(predictions, references, strict=True)
        ]
        return [mean_metric(name, [max(one[name].fmeasure for one in item) for item in scored]) for name in _ROUGES]


class JiebaRougeEvaluator:
    """``rouge1``, ``rouge2``, ``rougeL`` (F-measure) of Chinese texts cut into words by jieba."""

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        from rouge_chinese import Rouge

        rouge = Rouge()

        def measures(text: str, reference: str) -> Mapping[str, Mapping[str, float]]:
            pair = jieba_words(text), jieba_words(reference)
            if not all(pair):  # the library refuses empty texts
                return {name: {"f": float(pair[0] == pair[1])} for name in ("rouge-1", "rouge-2", "rouge-l")}
            return rouge.get_scores(*pair)[0]

        scored = [
            [measures(text, one) for one in accepted(reference)]
            for text, reference in zip(predictions, references, strict=True)
        ]
        names = zip(_ROUGES, ("rouge-1", "rouge-2", "rouge-l"), strict=True)
        return [mean_metric(name, [max(one[key]["f"] for one in item) for item in scored]) for name, key in names]


class BleuEvaluator:
    """``bleu``: corpus BLEU of sacrebleu. Items carry their sentence BLEU; the corpus value is not their mean.

    The standard error is a bootstrap over items with a fixed seed. ``tokenize``: sacrebleu's (``zh``: each Chinese
    character is a token), or ``jieba`` (words of Chinese and of other scripts). ``also``: further ones, whose metrics
    are called ``bleu_<tokenize>``.
    """

    def __init__(self, tokenize: str = "13a", resamples: int = 1000, also: Sequence[str] = ()) -> None:
        self.tokenize, self.also = tokenize, tuple(also)
        self.resamples = resamples

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
        metrics = [self._corpus("bleu", self.tokenize, predictions, references)]
        return metrics + [self._corpus(f"bleu_{name}", name, predictions, references) for name in self.also]

    def _corpus(self, name: str, tokenize: str, predictions: Sequence[str], references: Sequence[Reference]) -> Metric:
        import numpy
        from sacrebleu.metrics.bleu import BLEU

        words = tokenize == "jieba"
        cut = jieba_words if words else str
        # force: texts are cut into words here, which sacrebleu takes for an oversight
        measure = BLEU(tokenize="none" if words else tokenize, effective_order=True, force=words)
        items = [
            measure.sentence_score(cut(text), [cut(one) for one in accepted(reference)])
            for text, reference in zip(predictions, references, strict=True)
        ]

        table = numpy.array([[*item.counts, *item.totals, item.sys_len, item.ref_len] for item in items])

        def corpus(chosen: Sequence[int]) -> float:
            sums = [int(one) for one in table[numpy.asarray(chosen)].sum(axis=0)]
            return BLEU.compute_bleu(sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp").score / 100

        stderr = bootstrap_stderr(corpus, len(items), self.resamples)
        values = tuple(item.score / 100 for item in items)
        return Metric(name, values, corpus(range(len(items))), stderr, is_mean=False)


class TruthfulQAEvaluator:
    """``bleu_acc``, ``rouge1_acc``, ``rougeL_acc``: the answer is nearer to a right answer than to any wrong one.

    Rows have ``correct_answers`` and ``incorrect_answers``. Needs no judge model.
    """

    wants = "rows"

    def score(self, predictions: Sequence[Sequence[str]], rows: Sequence[Any]) -> list[Metric]:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU

        bleu, rouge = BLEU(effective_order=True), RougeScorer(["rouge1", "rougeL"], use_stemmer=False)

        def nearest(text: str, answers: Sequence[str]) -> list[float]:
            scores = [
                (bleu.sentence_score(text, [one]).score, *(s.fmeasure for s in rouge.score(one, text).values()))
                for one in answers
            ]
            return [max(column) for column in zip(*scores, strict=True)]

        values: list[list[float]] = []
        for texts, row in zip(predictions, rows, strict=True):
            right = [nearest(text, row["correct_answers"]) for text in texts]
            wrong = [nearest(text, row["incorrect_answers"]) for text in texts]
            wins = [[float(r > w) for r, w in zip(*pair, strict=True)] for pair in zip(right, wrong, strict=True)]
            values.append([sum(column) / len(column) for column in zip(*wins, strict=True)])
        names = ("bleu_acc", "rouge1_acc", "rougeL_acc")
        return [mean_metric(name, [item[place] for item in values]) for place, name in enumerate(names)]


def squad_normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of token precision and recall; two empty answers agree."""
    return _overlap(squad_normalize(text).split(), squad_normalize(reference).split())


def unit_f1(text: str, reference: str) -> float:
    """The same over ``units``: for Chinese, and for texts of several scripts."""
    return _overlap(units(text), units(reference))


def _overlap(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def jieba_words(text: str) -> str:
    """Chinese text cut into words by jieba, with single spaces between them."""
    return " ".join(word for word in jieba().cut(text) if word.strip())


def units(text: str) -> list[str]:
    """Chinese characters, and words of other scripts, without punctuation."""
    return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.lower())


def run_f1(text: str, reference: str) -> float:
    """F1 of the longest common run of units; two empty answers agree."""
    ours, theirs = units(text), units(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
    return 2 * common / (len(ours) + len(theirs))


def same_answer(text: str, reference: str) -> float:
    try:
        return float(abs(Decimal(_bare(text)) - Decimal(_bare(reference))) < Decimal("1e-6"))
    except InvalidOperation:
        return float(_bare(text) == _bare(reference))


def _bare(text: str) -> str:
    return re.sub(r"[\s,$]", "", text).rstrip(".")


def _folded(text: str) -> str:
    return general(text).casefold()
