"""RR@10 and NDCG@10 as HELM takes them from our engine's answers, against values computed by hand.

A passage is ranked by the answer (Yes before No) and then by its log-probability: the surest Yes first, the surest No last.
Järvelin and Kekäläinen 2002 as in trec_eval: the gain of a passage is its relevance, divided by log2(rank + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import pytest

from autoeval.models.requests import Cost, GenerationRequest, GenerationResult

pytestmark = pytest.mark.slow  # imports HELM


class Characters:
    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


class Judge:
    """Answers each passage as it is told, with one token of a given log-probability."""

    def __init__(self, answers: dict[str, tuple[str, float]]) -> None:
        self.answers, self.tokenizer, self.max_seq_len, self.cost = answers, Characters(), 512, Cost()

    def loglikelihoods(self, requests: Sequence[object]) -> list[object]:
        assert not requests
        return []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        told = [self.answers[self.tokenizer.decode(request.prompt)] for request in requests]
        return [GenerationResult(text, (ord(text[1]),), (logprob,), "stop") for text, logprob in told]


def ranked(passages: list[tuple[int, str, float]], *, graded: bool) -> dict[str, float]:
    """HELM's measures of one query; a passage is its relevance, the model's answer and the log-probability of that.

    ``graded`` as for msmarco's TREC track: to RR, relevance 1 is then none. The regular track knows 0 and 1 only.
    """
    from helm.benchmark.adaptation.adapter_spec import AdapterSpec
    from helm.benchmark.adaptation.request_state import RequestState
    from helm.benchmark.metrics.metric_service import MetricService
    from helm.benchmark.metrics.ranking_metrics import RankingMetric
    from helm.benchmark.scenarios.scenario import CORRECT_TAG, Input, Instance, Output, Reference, make_relevance_tag
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    names = [f"passage {number}" for number in range(len(passages))]
    tags = [[make_relevance_tag(value), *([CORRECT_TAG] if value else [])] for value, _, _ in passages]
    references = [Reference(Output(name), tag) for name, tag in zip(names, tags, strict=True)]
    instance = Instance(Input("query"), references, split="valid", id="id0")
    model = Judge({name: (text, logprob) for name, (_, text, logprob) in zip(names, passages, strict=True)})
    requests = [Request(prompt=name, max_tokens=2, temperature=0) for name in names]
    states = [
        RequestState(instance, number, "original", 0, None, request, result, 0, False)
        for number, (request, result) in enumerate(zip(requests, answer(model, requests), strict=True))
    ]
    metric = RankingMetric("ranking_binary", ["recip_rank.10", "ndcg_cut.10"], "Yes", "No", None, graded)
    service: MetricService = None  # type: ignore[assignment]  # this metric asks no model
    stats = metric.evaluate_references(AdapterSpec(), states, service, "")
    return {stat.name.name: stat.mean for stat in stats if stat.mean is not None}


def test_measures_are_those_computed_by_hand() -> None:
    # The order is 2, 0, 3 (Yes, ever less sure), 4, 1 (No, ever surer): relevances 0, 0, 3, 2, 1.
    found = ranked(
        [(0, " Yes", -0.5), (1, " No", -0.1), (0, " Yes", -0.2), (3, " Yes", -0.9), (2, " No", -2.0)], graded=True
    )
    assert [found[f"ref{number}_rank"] for number in (2, 0, 3, 4, 1)] == [0, 1, 2, 3, 4]
    assert found["RR@10"] == pytest.approx(1 / 3)
    gained, best = 3 / 2 + 2 / log2(5) + 1 / log2(6), 3 + 2 / log2(3) + 1 / 2
    assert found["NDCG@10"] == pytest.approx(gained / best)  # 2.748 / 4.762 = 0.577


@pytest.mark.parametrize(("place", "expected"), [(1, 1.0), (10, 1 / 10), (11, 0.0)])
def test_ranks_after_the_tenth_count_nothing(place: int, expected: float) -> None:
    passages = [(int(rank == place), " Yes", -0.1 * rank) for rank in range(1, 13)]
    found = ranked(passages, graded=False)
    assert found["RR@10"] == pytest.approx(expected)
    assert found["NDCG@10"] == pytest.approx(1 / log2(place + 1) if place <= 10 else 0.0)
