"""HELM's statistics of a run: ``stats.json`` and ``per_instance_stats.json`` -> values with standard errors.

A statistic is named by metric, split and, where there are any, sub-split and perturbation. A run whose statistics come
only by sub-split (civil_comments: toxic, non-toxic) counts as the average of these, and a benchmark as that of its runs
(every MMLU subject weighs the same). With strata s (run, sub-split), weights w_s that sum to one, n_s items and sample
variances v_s, the standard error is sqrt(sum w_s^2 v_s / n_s) (stratified sampling; Cochran, Sampling Techniques, 5.3).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stratum:
    """A sub-split of a run: HELM's own mean, and its items (instance -> mean over train trials) when it has any."""

    mean: float
    items: dict[str, float] = field(default_factory=dict)
    instances: int = 0


def means(stats: Iterable[Mapping[str, Any]], metric: str, split: str) -> dict[str, float]:
    """Sub-split ("" for none) -> HELM's mean of ``metric`` on ``split``, without perturbations."""
    return {
        stat["name"].get("sub_split", ""): float(stat["mean"])
        for stat in stats
        if _matches(stat, metric, split) and stat.get("count", 0) > 0
    }


def item_values(entries: Iterable[Mapping[str, Any]], metric: str, split: str) -> dict[str, dict[str, float]]:
    """Sub-split -> instance -> value (mean over train trials), of ``per_instance_stats.json``."""
    collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if "perturbation" in entry:
            continue
        for stat in entry["stats"]:
            if _matches(stat, metric, split) and stat.get("count", 0) > 0:
                collected[stat["name"].get("sub_split", "")][str(entry["instance_id"])].append(float(stat["mean"]))
    return {
        sub_split: {key: sum(values) / len(values) for key, values in items.items()}
        for sub_split, items in collected.items()
    }


def _matches(stat: Mapping[str, Any], metric: str, split: str) -> bool:
    name = stat["name"]
    return name["name"] == metric and name.get("split") == split and "perturbation" not in name


def weighted(strata: Sequence[Sequence[Stratum]]) -> list[tuple[Stratum, float]]:
    """The strata of each run with the weights of a macro average."""
    return [(stratum, 1.0 / len(strata) / len(of_run)) for of_run in strata for stratum in of_run]


def value(strata: Sequence[tuple[Stratum, float]]) -> float:
    return sum(weight * stratum.mean for stratum, weight in strata)


def standard_error(strata: Sequence[tuple[Stratum, float]]) -> float | None:
    """The stratified standard error; a stratum of one item borrows the pooled variance of the others.

    ``None`` where a stratum has no items (a corpus-level metric), and where no stratum has two.
    """
    if any(not stratum.items for stratum, _ in strata):
        return None
    squares, freedom = 0.0, 0
    variances: list[float | None] = []
    for stratum, _ in strata:
        values = list(stratum.items.values())
        mean = sum(values) / len(values)
        deviation = sum((one - mean) ** 2 for one in values)
        variances.append(deviation / (len(values) - 1) if len(values) > 1 else None)
        squares, freedom = squares + deviation, freedom + len(values) - 1
    if freedom == 0:
        return None
    pooled = squares / freedom
    total = sum(
        weight**2 * (pooled if variance is None else variance) / len(stratum.items)
        for (stratum, weight), variance in zip(strata, variances, strict=True)
    )
    return math.sqrt(total)
