"""Which dimensions are weak: no better than chance, or worse than a reference model. Every claim is tested.

The tests of one kind (against chance, against the reference) are corrected for their number (Holm), so that all of
them together are wrong in one diagnosis of twenty at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autoeval.model_eval.outcomes import Outcome
from recorder.statistics import Difference, holm, paired_difference, unpaired_difference


@dataclass(frozen=True)
class Reference:
    """What another model scored on one dimension. ``items`` is empty where an answer was kept without them."""

    value: float
    stderr: float | None
    n: int
    version: str
    items: Mapping[str, float] = field(default_factory=dict, repr=False)


_TEXTS = {
    "zh": {
        "no chance": "题目不足两道，无法检验",
        "weak": "得分 {score:.3f} 与随机水平 {chance:.3f} 无显著差异（p = {p:.2g}；至少相差 {detectable:.3f} 才能检出）",
        "fine": "得分 {score:.3f} 显著高于随机水平 {chance:.3f}（p = {p:.2g}）",
        "worse": "比参考模型低 {gap:.3f}（95 % 区间 {low:+.3f} 至 {high:+.3f}，p = {p:.2g}）",
        "better": "比参考模型高 {gap:.3f}（95 % 区间 {low:+.3f} 至 {high:+.3f}，p = {p:.2g}）",
        "cannot tell": "与参考模型无显著差异（相差 {value:+.3f}；至少相差 {detectable:.3f} 才能检出）",
        "not comparable": "参考模型使用的是另一版本的题目或提示词，无法比较",
        "not there": "参考模型没有这一维度的结果",
        "summary none": "没有发现薄弱维度。",
        "summary weak": "薄弱维度：{names}。",
    },
    "en": {
        "no chance": "fewer than two items: nothing can be tested",
        "weak": "its score {score:.3f} cannot be told from chance, {chance:.3f} (p = {p:.2g}; {detectable:.3f} could be seen)",
        "fine": "its score {score:.3f} is above chance, {chance:.3f} (p = {p:.2g})",
        "worse": "{gap:.3f} below the reference model (95 % interval {low:+.3f} to {high:+.3f}, p = {p:.2g})",
        "better": "{gap:.3f} above the reference model (95 % interval {low:+.3f} to {high:+.3f}, p = {p:.2g})",
        "cannot tell": "cannot be told from the reference model (difference {value:+.3f}; {detectable:.3f} could be seen)",
        "not comparable": "the reference was scored on other items or prompts: not comparable",
        "not there": "the reference model has no result for this dimension",
        "summary none": "No weak dimension was found.",
        "summary weak": "Weak dimensions: {names}.",
    },
}


def diagnose(
    outcomes: Mapping[str, Outcome], references: Mapping[str, Reference] | None = None, lang: str = "zh"
) -> dict[str, Any]:
    """``weak_dimensions``, the weakest first; per dimension ``verdict`` (``weak``, ``fine`` or ``cannot tell``), the
    reasons in words and the figures of both comparisons; and a ``summary``.

    A dimension is weak when its items are not better than under random deals of the same answers, or when it is worse
    than the reference on the same items.
    """
    texts = _TEXTS[lang]
    chances = _corrected({name: outcome.above_chance for name, outcome in outcomes.items()})
    against = _corrected({name: _compared(one, references) for name, one in outcomes.items()})
    dimensions: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        verdict, reasons = _chance_verdict(outcome, chances[name], texts)
        entry: dict[str, Any] = {"verdict": verdict, "reasons": reasons, "against_chance": None}
        if (difference := chances[name]) is not None:
            entry["against_chance"] = {"chance": _short(outcome.chance), **_figures(difference)}
        if references is not None:
            reference, difference = references.get(name), against[name]
            reasons.append(_reference_reason(outcome, reference, difference, texts))
            entry["against_reference"] = None
            if reference is not None and difference is not None:
                entry["against_reference"] = {"reference": _short(reference.value), **_figures(difference)}
                if difference.verdict == "worse":
                    entry["verdict"] = "weak"
        dimensions[name] = entry
    weak = sorted((name for name in dimensions if dimensions[name]["verdict"] == "weak"), key=_margin(outcomes))
    summary = texts["summary weak"].format(names=", ".join(weak)) if weak else texts["summary none"]
    return {"weak_dimensions": weak, "summary": summary, "dimensions": dimensions}


def _margin(outcomes: Mapping[str, Outcome]) -> Any:
    """By how much of what chance leaves the score is above it: 0 is chance, 1 is perfect."""

    def margin(name: str) -> float:
        outcome = outcomes[name]
        chance = outcome.chance or 0.0
        return (outcome.main.value - chance) / (1 - chance) if chance < 1 else 0.0

    return margin


def _chance_verdict(outcome: Outcome, difference: Difference | None, texts: Mapping[str, str]) -> tuple[str, list[str]]:
    if difference is None or outcome.chance is None:
        return "cannot tell", [texts["no chance"]]
    verdict = "fine" if difference.verdict == "better" else "weak"
    said = texts[verdict].format(
        score=outcome.main.value, chance=outcome.chance, p=difference.p_value, detectable=difference.detectable
    )
    return verdict, [said]


def _compared(outcome: Outcome, references: Mapping[str, Reference] | None) -> Difference | None:
    """Item by item where the reference's items are known, else by both errors; ``None`` where it cannot be compared."""
    reference = (references or {}).get(outcome.task)
    if reference is None or reference.version != outcome.version:
        return None
    if reference.items:
        return paired_difference(outcome.items, reference.items)
    if outcome.stderr is None or reference.stderr is None:
        return None
    return unpaired_difference(
        outcome.main.value, outcome.stderr, reference.value, reference.stderr, min(outcome.main.n, reference.n)
    )


def _reference_reason(
    outcome: Outcome, reference: Reference | None, difference: Difference | None, texts: Mapping[str, str]
) -> str:
    if reference is None:
        return texts["not there"]
    if difference is None:
        return texts["not comparable" if reference.version != outcome.version else "no chance"]
    return texts[difference.verdict].format(
        gap=abs(difference.value),
        value=difference.value,
        low=difference.low,
        high=difference.high,
        p=difference.p_value,
        detectable=difference.detectable,
    )


def _corrected(differences: Mapping[str, Difference | None]) -> dict[str, Difference | None]:
    there = {name: one for name, one in differences.items() if one is not None}
    p_values = holm([one.p_value for one in there.values()])
    corrected = {name: replace(one, p_value=p) for (name, one), p in zip(there.items(), p_values, strict=True)}
    return {name: corrected.get(name) for name in differences}


def _figures(difference: Difference) -> dict[str, Any]:
    return {
        "difference": _short(difference.value),
        "stderr": _short(difference.stderr),
        "p_value": _short(difference.p_value),
        "detectable": _short(difference.detectable),
        "n": difference.n,
        "verdict": difference.verdict,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
