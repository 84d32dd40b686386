"""How much a score moves from one checkpoint to the next though the model gets neither better nor worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recorder.statistics.intervals import student_quantile


def checkpoint_noise(values: Sequence[float], last: int = 10) -> float | None:
    """Standard deviation of a single checkpoint's score around the run's smooth course, of the ``last`` checkpoints.

    sqrt(sum (v_i - 2 v_{i+1} + v_{i+2})^2 / (6 m)): second differences, so that a steady rise counts as none; a value's
    noise enters three of them with weights 1, -2, 1. ``None`` below four values. It holds the sampling of items too.
    Source: Gasser, Sroka & Jennen-Steinmetz 1986, Biometrika 73:625; that this noise, not only the items', limits what
    neighbouring checkpoints can tell: Heineman et al. 2025 (arXiv 2508.13144).
    """
    recent = values[-last:]
    if len(recent) < 4:
        return None
    bends = [a - 2 * b + c for a, b, c in zip(recent, recent[1:], recent[2:], strict=False)]
    return math.sqrt(math.fsum(bend * bend for bend in bends) / (6 * len(bends)))


@dataclass(frozen=True)
class LevelTrend:
    """A straight line through the last checkpoints. ``slope`` per unit of x with its standard error and p-value.

    ``change`` is the slope over the checkpoints looked at: how far the level moved, with its 95 % interval.
    """

    slope: float
    stderr: float
    p_value: float
    change: float
    low: float
    high: float
    points: int


def level_trend(x: Sequence[float], values: Sequence[float], last: int = 6) -> LevelTrend | None:
    """Least squares over the ``last`` checkpoints; ``None`` below four or without different x.

    Its scatter around the line is what the standard error comes from, so training noise is in it. Source: ordinary
    least squares with Student's t on n - 2 degrees of freedom.
    """
    from scipy.stats import t

    xs, ys = list(x[-last:]), list(values[-last:])
    count = len(xs)
    centre = math.fsum(xs) / count if count else 0.0
    spread = math.fsum((one - centre) ** 2 for one in xs)
    if count < 4 or spread <= 0:
        return None
    level = math.fsum(ys) / count
    slope = math.fsum((one - centre) * (value - level) for one, value in zip(xs, ys, strict=True)) / spread
    left = [value - level - slope * (one - centre) for one, value in zip(xs, ys, strict=True)]
    stderr = math.sqrt(math.fsum(one * one for one in left) / (count - 2) / spread)
    p_value = float(2 * t.sf(abs(slope) / stderr, count - 2)) if stderr > 0 else float(slope == 0.0)
    width, half = max(xs) - min(xs), student_quantile(count - 2) * stderr
    return LevelTrend(slope, stderr, p_value, slope * width, (slope - half) * width, (slope + half) * width, count)
