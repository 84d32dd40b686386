"""Evaluators: predictions and references to metrics, with every item's value and a standard error.

Values are in 0..1 (OpenCompass's 0..100 belongs to its tables). OpenICL's class names. ``score(predictions,
references)``; an evaluator's ``wants`` says where it is given something else: ``rows`` (lists of texts, and the test
rows), ``records`` (of the inferencer, and lists of right labels), ``probabilities`` (and the right choice's index).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoeval.datasets.names import class_name, look_up
from autoeval.openicl.choice_metrics import (
    AccEvaluator,
    AUCROCEvaluator,
    BBHEvaluator,
    BPBEvaluator,
    GreedyEvaluator,
    MassEvaluator,
    MccEvaluator,
)
from autoeval.openicl.code_metrics import HumanEvalEvaluator
from autoeval.openicl.metric import Metric, Reference, accepted, mean_metric
from autoeval.openicl.text_metrics import (
    BleuEvaluator,
    CMRCEvaluator,
    EMEvaluator,
    F1Evaluator,
    JiebaRougeEvaluator,
    MATHEvaluator,
    RougeEvaluator,
    SquadEvaluator,
    TruthfulQAEvaluator,
)

__all__ = ["AccEvaluator", "Metric", "Reference", "accepted", "build_evaluator", "mean_metric"]

EVALUATORS: Mapping[str, type] = {
    one.__name__: one
    for one in (
        AccEvaluator,
        AUCROCEvaluator,
        BBHEvaluator,
        BleuEvaluator,
        BPBEvaluator,
        CMRCEvaluator,
        EMEvaluator,
        F1Evaluator,
        GreedyEvaluator,
        HumanEvalEvaluator,
        JiebaRougeEvaluator,
        MassEvaluator,
        MATHEvaluator,
        MccEvaluator,
        RougeEvaluator,
        SquadEvaluator,
        TruthfulQAEvaluator,
    )
} | {
    # OpenCompass's names for the same.
    "AccwithDetailsEvaluator": AccEvaluator,
    "BBHEvaluator_mcq": AccEvaluator,
    "HumanEvaluator": HumanEvalEvaluator,
    "HumanEvalEvaluator": HumanEvalEvaluator,
    "Gsm8kEvaluator": MATHEvaluator,
    "LambadaEvaluator": EMEvaluator,
    "AveragePPLEvaluator": BPBEvaluator,
}


def check_code_execution(eval_cfg: Mapping[str, Any], name: str, allowed: bool, how: str) -> None:
    """Refuse, before anything is computed, to score what may not be run. ``how`` says where it is allowed.

    Raises ``ValueError`` naming the dataset ``name``.
    """
    chosen = EVALUATORS.get(class_name(eval_cfg.get("evaluator", {}).get("type", "")))
    if not allowed and chosen is HumanEvalEvaluator:
        raise ValueError(f"dataset '{name}': scoring it runs code that the model wrote: allow it with {how}")


def build_evaluator(options: Mapping[str, Any], *, allow_code_execution: bool = False) -> Any:
    """From ``dict(type="AccEvaluator")``. ``allow_code_execution`` is for those that run what a model wrote."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(EVALUATORS, options.get("type", ""), "evaluator")
    if chosen is HumanEvalEvaluator:  # never from the configuration: it comes with the data
        if "allow_code_execution" in keywords:
            raise ValueError("allow_code_execution is not a dataset's to give: it belongs to whoever runs it")
        keywords["allow_code_execution"] = allow_code_execution
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"evaluator {chosen.__name__}: {error}") from error
