"""A metric: its value over items, its standard error, and what each item contributes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def mean_metric(name: str, values: Sequence[float], *, higher_is_better: bool = True) -> Metric:
    """The mean with its standard error, from the sample variance (n - 1)."""
    count = len(values)
    mean = math.fsum(values) / count
    stderr = None
    if count > 1:
        stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Metric(name, tuple(values), mean, stderr, higher_is_better)


def bootstrap_stderr(statistic: Callable[[Sequence[int]], float], count: int, resamples: int = 1000) -> float | None:
    """The standard deviation of ``statistic(indices)`` over resamples of the items, with a fixed seed.

    ``None`` below two items or two resamples.
    """
    if count < 2 or resamples < 2:
        return None
    draw, everything = random.Random(0), range(count)
    samples = [statistic(draw.choices(everything, k=count)) for _ in range(resamples)]
    mean = math.fsum(samples) / len(samples)
    return math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / (len(samples) - 1))


def ratio_metric(
    name: str,
    numerators: Sequence[float],
    denominators: Sequence[float],
    transform: Callable[[float], float] = float,
    slope: Callable[[float], float] = lambda _: 1.0,
) -> Metric:
    """``transform`` of sum / sum, lower is better; each item's value is that of its own ratio.

    Standard error: linearised, sqrt(n / (n - 1) sum (a - r b)^2) / sum b, times ``slope`` (the transform's derivative).
    """
    total, count = math.fsum(denominators), len(numerators)
    ratio = math.fsum(numerators) / total
    stderr = None
    if count > 1:
        squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
        stderr = math.sqrt(count / (count - 1) * squares) / total * slope(ratio)
    values = tuple(transform(a / b) for a, b in zip(numerators, denominators, strict=True))
    return Metric(name, values, transform(ratio), stderr, higher_is_better=False, is_mean=False)


def accepted(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else [str(one) for one in reference]


def best(
    measure: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Reference]
) -> list[float]:
    """The best over each item's references."""
    pairs = zip(predictions, references, strict=True)
    return [max(measure(text, one) for one in accepted(reference)) for text, reference in pairs]
