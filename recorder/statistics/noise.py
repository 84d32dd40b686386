"""How much a score moves from one checkpoint to the next though the model gets neither better nor worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recorder.statistics.intervals import student_quantile


def checkpoint_noise(values: Sequence[float], x: Sequence[float] | None = None, last: int = 10) -> float | None:
    """Standard deviation of a single checkpoint's score around the run's smooth course, of the ``last`` checkpoints.

    sqrt(mean r_i^2) with r_i = (a v_{i-1} + b v_{i+1} - v_i) / sqrt(a^2 + b^2 + 1): each value against the straight line
    through its neighbours, so that a steady rise counts as none; a and b weigh the neighbours by their distance in log x
    (evenly without ``x``). ``None`` below four values. It holds the sampling of items too, as far as another
    checkpoint draws differently. Source: Gasser, Sroka & Jennen-Steinmetz 1986, Biometrika 73:625; that this noise,
    not only the items', limits what neighbouring checkpoints can tell: Heineman et al. 2025 (arXiv 2508.13144).
    """
    recent = list(values[-last:])
    if len(recent) < 4:
        return None
    places = [float(i) for i in range(len(recent))]
    if x is not None and min(x[-last:]) > 0:
        places = [math.log(one) for one in x[-last:]]
    squares = []
    for i in range(1, len(recent) - 1):
        width = places[i + 1] - places[i - 1]
        a = 0.5 if width <= 0 else (places[i + 1] - places[i]) / width
        left = a * recent[i - 1] + (1 - a) * recent[i + 1] - recent[i]
        squares.append(left * left / (a * a + (1 - a) ** 2 + 1))
    return math.sqrt(math.fsum(squares) / len(squares))


@dataclass(frozen=True)
class LevelTrend:
    """A straight line through the last checkpoints. ``slope`` per unit of x with its standard error and p-value.

    ``change`` is the slope over the checkpoints looked at: how far the level moved, with its 95 % interval. ``scatter``
    is the standard deviation of the checkpoints around the line.
    """

    slope: float
    stderr: float
    p_value: float
    change: float
    low: float
    high: float
    points: int
    scatter: float = 0.0


def level_trend(x: Sequence[float], values: Sequence[float], last: int = 8) -> LevelTrend | None:
    """Least squares over the ``last`` checkpoints; ``None`` below four or without different x.

    Its scatter around the line is what the standard error comes from, so training noise is in it. Source: ordinary
    least squares with Student's t on n - 2 degrees of freedom.
    """
    from scipy.special import stdtr

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
    p_value = float(2 * stdtr(count - 2, -abs(slope) / stderr)) if stderr > 0 else float(slope == 0.0)
    width, half = max(xs) - min(xs), student_quantile(count - 2) * stderr
    low, high = (slope - half) * width, (slope + half) * width
    return LevelTrend(slope, stderr, p_value, slope * width, low, high, count, stderr * math.sqrt(spread))
