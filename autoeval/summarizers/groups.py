"""Averages over groups of datasets, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Which metric stands for a dataset when none is asked for: the first of these that it has (OpenCompass's order).
METRIC_WHITELIST = (
    "score",
    "auc_score",
    "accuracy",
    "humaneval_pass@1",
    "pass@1",
    "rouge1",
    "avg_toxicity_score",
    "bleurt_diff",
    "matthews_correlation",
    "truth",
    "f1",
    "exact_match",
    "extract_rate",
)
METRIC_BLACKLIST = frozenset({"bp", "sys_len", "ref_len", "type"})


@dataclass(frozen=True)
class Cell:
    """One number of the table, or why there is none."""

    value: float | None = None
    stderr: float | None = None
    n: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"missing: {self.reason}"
        return " ± ".join(_number(one) for one in (self.value, self.stderr) if one is not None)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3e}"


@dataclass(frozen=True)
class Entry:
    """One dataset's (or group's) metrics for one model, the leading one first; ``error`` when there are none."""

    metrics: Mapping[str, Cell]
    version: str = "-"
    mode: str = "unknown"
    error: str = ""

    def cell(self, metric: str | None) -> Cell:
        """The metric's cell; ``None`` asks for the leading one."""
        if self.error:
            return Cell(reason=self.error)
        if metric is None:
            return next(iter(self.metrics.values()))
        return self.metrics.get(metric, Cell(reason=f"no {metric} (there are: {', '.join(self.metrics)})"))


@dataclass(frozen=True)
class Group:
    """A summary group of a configuration: ``subsets`` are abbrs, or (abbr, metric)."""

    name: str
    subsets: tuple[tuple[str, str | None], ...]
    weights: Mapping[str, float] | None = None
    std: bool = False

    @classmethod
    def read(cls, options: Any) -> Group:
        """Raises ``ValueError`` naming what is wrong."""
        if not isinstance(options, Mapping) or not options.get("name") or not options.get("subsets"):
            raise ValueError(f"a summary group is dict(name=..., subsets=[...]), found {options!r}")
        unknown = set(options) - {"name", "subsets", "weights", "std", "metric"}
        if unknown:
            raise ValueError(f"summary group '{options['name']}' has an unknown key '{min(unknown)}'")
        default = options.get("metric")
        subsets = tuple(
            (one, default) if isinstance(one, str) else (str(one[0]), str(one[1])) for one in options["subsets"]
        )
        weights = options.get("weights")
        if weights is not None and set(weights) != {abbr for abbr, _ in subsets}:
            raise ValueError(f"summary group '{options['name']}': weights and subsets do not name the same datasets")
        return cls(str(options["name"]), subsets, weights, bool(options.get("std")))

    def entry(self, entries: Mapping[str, Entry]) -> Entry:
        """The group for one model; without all of its subsets there is no average, but their names."""
        cells = [entries[abbr].cell(metric) if abbr in entries else Cell() for abbr, metric in self.subsets]
        missing = [abbr for (abbr, _), cell in zip(self.subsets, cells, strict=True) if cell.value is None]
        if missing:
            return Entry({}, error=f"missing datasets: {', '.join(missing)}")
        modes = {entries[abbr].mode for abbr, _ in self.subsets}
        weights = [
            self.weights[abbr] if self.weights else cell.n for (abbr, _), cell in zip(self.subsets, cells, strict=True)
        ]
        metrics = {"naive_average": weighted(cells, [1.0] * len(cells)), "weighted_average": weighted(cells, weights)}
        if self.std and len(cells) > 1:
            values = [cell.value or 0.0 for cell in cells]
            mean = math.fsum(values) / len(values)
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
            metrics["standard_deviation"] = Cell(deviation, None, sum(cell.n for cell in cells))
        return Entry(metrics, mode=modes.pop() if len(modes) == 1 else "mixed")


def weighted(cells: Sequence[Cell], weights: Sequence[float]) -> Cell:
    """The weighted mean; its standard error takes the datasets as independent: sqrt(sum (w s)^2) / sum w."""
    total = math.fsum(weights)
    if total <= 0:
        return Cell(reason="its weights are all zero")
    value = math.fsum(weight * (cell.value or 0.0) for cell, weight in zip(cells, weights, strict=True)) / total
    errors = [cell.stderr for cell in cells]
    stderr = None
    if all(error is not None for error in errors):
        squares = [(weight * (error or 0.0)) ** 2 for error, weight in zip(errors, weights, strict=True)]
        stderr = math.sqrt(math.fsum(squares)) / total
    return Cell(value, stderr, sum(cell.n for cell in cells))
