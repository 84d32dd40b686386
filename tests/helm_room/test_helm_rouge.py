"""ROUGE of summaries: ours is what HELM's own metric computes."""

from __future__ import annotations

import sys
import types

import pytest

pytestmark = pytest.mark.slow

SUMMARIES = [
    ("{A fox lived in the wood.}", "A brown fox has lived in woods"),
    ("A fox, by name 3, lived", "{nothing of the kind}"),
    ("The cats were running home", "cats run home, the dogs ran"),
    ("one two three four", ""),
]


def test_our_rouge_is_that_of_helms_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    bert_score = types.ModuleType("bert_score")  # HELM's module imports it, its ROUGE does not use it
    bert_score.BERTScorer = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bert_score", bert_score)
    from helm.benchmark.adaptation.adapter_spec import AdapterSpec
    from helm.benchmark.adaptation.request_state import RequestState
    from helm.benchmark.metrics.evaluate_reference_metrics import get_rouge_function
    from helm.benchmark.metrics.summarization_metrics import SummarizationMetric
    from helm.benchmark.scenarios.scenario import CORRECT_TAG, Input, Instance, Output, Reference
    from helm.common.request import GeneratedOutput, Request, RequestResult

    from autoeval.helm.rouge import RougeMetric

    theirs = object.__new__(SummarizationMetric)  # its constructor wants packages that no index has
    theirs.rouge_fns = {
        name: get_rouge_function(kind)
        for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))
    }
    for written, wanted in SUMMARIES:
        references = [Reference(Output(text), [CORRECT_TAG]) for text in (wanted, "{A fox lived}")]
        result = RequestResult(True, [], [GeneratedOutput(f" {written} ", 0.0, [])], False)
        state = RequestState(Instance(Input(""), references), None, None, 0, None, Request(), result, 0, False)
        ours = RougeMetric().evaluate_generation(AdapterSpec(), state, None, "")  # type: ignore[arg-type]
        texts = [theirs._remove_braces(one.output.text) for one in references]
        expected = theirs._compute_rouge(texts, theirs._remove_braces(written))
        assert {stat.name.name: stat.mean for stat in ours} == pytest.approx(expected)


def test_the_metric_is_replaced_only_where_it_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from helm.benchmark.adaptation.adapter_spec import AdapterSpec
    from helm.benchmark.metrics.common_metric_specs import get_summarization_metric_specs
    from helm.benchmark.run_spec import RunSpec
    from helm.benchmark.scenarios.scenario import ScenarioSpec

    from autoeval.helm import rouge

    metrics = get_summarization_metric_specs({"task": "summarization_xsum", "device": "cpu"})
    spec = RunSpec("x", ScenarioSpec("a.b", {}), AdapterSpec(), metrics)
    monkeypatch.setattr(rouge, "find_spec", lambda name: None if name == "summ_eval" else object())
    changed = rouge.with_computable_metrics(spec)
    assert [metric.class_name for metric in changed.metric_specs] == [
        "autoeval.helm.rouge.RougeMetric", *(metric.class_name for metric in metrics[1:]),
    ]  # fmt: skip
    assert rouge.with_computable_metrics(changed) is changed
    monkeypatch.setattr(rouge, "find_spec", lambda name: object())
    assert rouge.with_computable_metrics(spec) is spec
