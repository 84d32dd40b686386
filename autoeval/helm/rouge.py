"""ROUGE of summaries where HELM's ``SummarizationMetric`` cannot be made. This module imports HELM.

That class computes ROUGE with HELM's own function, and besides coverage, density and compression (``summ-eval`` and
spaCy's ``en_core_web_sm``, which no package index has), BERTScore and faithfulness (a GPU, models from the hub) and
figures of HELM's human evaluation (pickles that it downloads while it runs). Without all of these it computes nothing.
``RougeMetric`` computes its ROUGE-1, ROUGE-2 and ROUGE-L and nothing else, in the same way.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec

from helm.benchmark.adaptation.adapter_spec import AdapterSpec
from helm.benchmark.adaptation.request_state import RequestState
from helm.benchmark.metrics.evaluate_reference_metrics import get_rouge_function
from helm.benchmark.metrics.metric import Metric, MetricSpec
from helm.benchmark.metrics.metric_name import MetricName
from helm.benchmark.metrics.metric_service import MetricService
from helm.benchmark.metrics.statistic import Stat
from helm.benchmark.run_spec import RunSpec

_LOGGER = logging.getLogger("autoeval.helm")

_SUMMARIZATION = "helm.benchmark.metrics.summarization_metrics.SummarizationMetric"
_NEEDED = ("bert_score", "summ_eval", "en_core_web_sm")
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class RougeMetric(Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L (F measure, stemmed): of the first completion with the reference it fits best."""

    def __init__(self) -> None:
        self._functions = {name: get_rouge_function(kind) for name, kind in _ROUGE.items()}

    def evaluate_generation(
        self,
        adapter_spec: AdapterSpec,
        request_state: RequestState,
        metric_service: MetricService,
        eval_cache_path: str,
    ) -> list[Stat]:
        assert request_state.result is not None
        summary = without_braces(request_state.result.completions[0].text.strip())
        references = [without_braces(reference.output.text) for reference in request_state.instance.references]
        return [
            Stat(MetricName(name)).add(max(float(function(reference, summary)) for reference in references))
            for name, function in self._functions.items()
        ]


def without_braces(text: str) -> str:
    """HELM's prompts for summaries put them in braces."""
    return text.removeprefix("{").removesuffix("}")


def with_computable_metrics(spec: RunSpec) -> RunSpec:
    """``spec`` with ``RougeMetric`` for ``SummarizationMetric`` where a package of the latter is missing."""
    if all(metric.class_name != _SUMMARIZATION for metric in spec.metric_specs):
        return spec
    if not (missing := [name for name in _NEEDED if find_spec(name) is None]):
        return spec
    _LOGGER.warning("%s: of HELM's summarization metrics only ROUGE is computed; the others need %s",
                    spec.name, ", ".join(missing))  # fmt: skip
    rouge = MetricSpec(f"{RougeMetric.__module__}.{RougeMetric.__name__}", {})
    metrics = [rouge if metric.class_name == _SUMMARIZATION else metric for metric in spec.metric_specs]
    return replace(spec, metric_specs=metrics)
