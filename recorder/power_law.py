"""A saturating power law fitted to a run's course, many times over for checkpoints and items drawn anew.

y(x) = floor + size x^-exponent on a scale on which lower is better: bits per byte as they are (Hoffmann et al. 2022,
arXiv 2203.15556, for one model size), the log of a perplexity, minus the log of an accuracy (Krajewski et al. 2025 find
that this direct law on log accuracy extrapolates better than a detour over the loss), and the distance from 1 for an
average that may be below 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Scale = Literal["log accuracy", "error", "loss", "log loss"]

EXPONENTS = tuple(0.05 * 1.18**k for k in range(24))  # 0.05 to 2.2, evenly in their logarithm
WINDOW = 0.1  # of the training so far: what is earlier belongs to the warm-up, not to the law
POINTS = 64  # that a law of three parameters is fitted to: of more checkpoints, neighbours are averaged
LEAST = 1e-4  # an accuracy of 0 has no logarithm
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class Course:
    """``x`` ascending, ``values`` as reported; ``items`` the outcomes, in one order, by place in ``x``.

    They are needed at the ``representatives`` only, and empty when they were not kept.
    """

    x: tuple[float, ...]
    values: tuple[float, ...]
    scale: Scale
    items: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fits:
    """``floors``, ``sizes``, ``exponents``: arrays, one entry a draw; the first is the fit to what was measured."""

    scale: Scale
    first: float  # the smallest x that the law was fitted to
    floors: Any
    sizes: Any
    exponents: Any
    scatter: float  # standard deviation of the measured values around the first fit
    checkpoints: int  # that the law was fitted to

    @property
    def exponent(self) -> float:
        return float(self.exponents[0])

    @property
    def floor(self) -> float:
        """The value (as reported) that the course approaches."""
        return float(_back(self.floors[0], self.scale))

    def at(self, x: float) -> Any:
        """The values, one a draw."""
        return _back(self.floors + self.sizes * x**-self.exponents, self.scale)

    def fitted(self, x: Sequence[float]) -> Any:
        """The values of the first fit at several ``x``."""
        import numpy

        return _back(self.floors[0] + self.sizes[0] * numpy.array(x) ** -self.exponents[0], self.scale)

    def gain(self, now: float, ahead: float) -> tuple[float, float, float]:
        """(expected, low, high) of what the next ``ahead`` bring; up is good. Expected is the median of the draws."""
        import numpy

        gains = self._gains(now, ahead)
        low, middle, high = numpy.quantile(gains, (INTERVAL[0], 0.5, INTERVAL[1]))
        return float(middle), float(low), float(high)

    def share_of_gains_above(self, now: float, ahead: float, least: float) -> float:
        return float((self._gains(now, ahead) >= least).mean())

    def _gains(self, now: float, ahead: float) -> Any:
        sign = -1.0 if self.scale in ("loss", "log loss") else 1.0
        return sign * (self.at(now + ahead) - self.at(now))

    def reach(self, value: float, now: float, farthest: float) -> tuple[float | None, float | None, float | None]:
        """(middle, low, high) of the x at which a checkpoint has ``value``; ``None`` for beyond ``farthest``.

        A checkpoint scatters around the curve (a normal variable of ``scatter``), so it may be there earlier or later.
        """
        import numpy

        off = numpy.random.default_rng(1).normal(0.0, self.scatter, len(self.floors))
        off[0] = 0.0
        left = _forth(value + off, self.scale) - self.floors
        with numpy.errstate(all="ignore"):
            x = numpy.where((left > 0) & (self.sizes > 0), (left / self.sizes) ** (-1 / self.exponents), numpy.inf)
        x = numpy.maximum(numpy.nan_to_num(x, nan=math.inf, posinf=math.inf), now)
        middle, low, high = (float(numpy.quantile(x, q, method="higher")) for q in (0.5, *INTERVAL))
        return tuple(one if one <= farthest else None for one in (middle, low, high))  # type: ignore[return-value]

    def curve(self, last: float, points: int = 40) -> tuple[tuple[float, float, float, float], ...]:
        """(x, fitted, low, high) from the first fitted x to ``last``."""
        import numpy

        x = numpy.geomspace(self.first, last, points)
        drawn = _back(self.floors[:, None] + self.sizes[:, None] * x ** -self.exponents[:, None], self.scale)
        rows = numpy.stack([x, drawn[0], *numpy.quantile(drawn, INTERVAL, axis=0)], axis=1)
        return tuple((float(at), float(y), float(low), float(high)) for at, y, low, high in rows)


def representatives(x: Sequence[float]) -> tuple[int, ...]:
    """The places in ``x`` whose items stand for their neighbours' too: the last of each group."""
    return tuple(group[-1] for group in _groups(x))


def _groups(x: Sequence[float]) -> list[list[int]]:
    """The places that the law is fitted to, in ``POINTS`` groups of neighbours (or one each where they are fewer)."""
    keep = [place for place, one in enumerate(x) if one > 0 and one >= WINDOW * x[-1]]
    if len(keep) < 4:
        keep = [place for place, one in enumerate(x) if one > 0]
    count = min(POINTS, len(keep))
    return [keep[len(keep) * k // count : len(keep) * (k + 1) // count] for k in range(count)]


def bootstrap(course: Course, draws: int = 400, seed: int = 0) -> Fits | None:
    """Fit ``draws`` times to checkpoints and items drawn with replacement; ``None`` with fewer than four checkpoints.

    Items are drawn once for all checkpoints of a draw, for they are the same items at each. Source: Efron & Tibshirani
    1993, An Introduction to the Bootstrap, section 9.5 (pairs). For an exponent on a grid the law is linear in floor
    and size, so each fit is the best of ``EXPONENTS`` with its closed form.
    """
    import numpy

    groups = _groups(course.x)
    if len(groups) < 4:
        return None
    generator = numpy.random.default_rng(seed)
    x = numpy.array([math.fsum(course.x[place] for place in group) / len(group) for group in groups])
    points = [math.fsum(course.values[place] for place in group) / len(group) for group in groups]
    values = numpy.tile(numpy.array(points), (draws, 1))
    if course.items:
        outcomes = numpy.array([course.items[group[-1]] for group in groups])
        count = outcomes.shape[1]
        drawn = generator.multinomial(count, numpy.full(count, 1 / count), size=draws - 1)
        values[1:] += drawn @ outcomes.T / count - outcomes.mean(axis=1)
    weights = generator.multinomial(len(groups), [1 / len(groups)] * len(groups), size=draws).astype(float)
    weights[0] = 1.0
    for draw in range(1, draws):  # a line needs more than two places
        while (weights[draw] > 0).sum() < 3:
            weights[draw] = generator.multinomial(len(groups), [1 / len(groups)] * len(groups))
    floors, sizes, exponents = _fit(numpy, x, _forth(values, course.scale), weights)
    fits = Fits(course.scale, course.x[groups[0][0]], floors, sizes, exponents, 0.0, sum(map(len, groups)))
    return replace(fits, scatter=_scatter(course, fits, [place for group in groups for place in group]))


def _scatter(course: Course, fits: Fits, places: Sequence[int]) -> float:
    """Of single checkpoints, averaged ones scatter less."""
    import numpy

    left = numpy.array([course.values[place] for place in places]) - fits.fitted([course.x[place] for place in places])
    return math.sqrt(float((left**2).sum()) / max(1, len(places) - 3))  # three parameters were fitted


def _fit(numpy: Any, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Weighted least squares for each draw (row of ``y`` and ``weights``); the best exponent of the grid."""
    scale = x[-1]
    best = None
    total = weights.sum(axis=1)
    for exponent in EXPONENTS:
        u = (x / scale) ** -exponent
        u_mean, y_mean = weights @ u / total, (weights * y).sum(axis=1) / total
        du, dy = u[None, :] - u_mean[:, None], y - y_mean[:, None]
        size = (weights * du * dy).sum(axis=1) / numpy.maximum((weights * du * du).sum(axis=1), 1e-300)
        floor = y_mean - size * u_mean
        below = floor < 0  # no loss and no error is below 0: then the best line through the origin
        through = (weights * u * y).sum(axis=1) / (weights * u * u).sum(axis=1)
        size, floor = numpy.where(below, through, size), numpy.where(below, 0.0, floor)
        left = (weights * (y - floor[:, None] - size[:, None] * u[None, :]) ** 2).sum(axis=1)
        found = (left, floor, size * scale**exponent, numpy.full_like(left, exponent))
        if best is None:
            best = found
        else:
            better = left < best[0]
            best = tuple(numpy.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    return best[1], best[2], best[3]


def _forth(values: Any, scale: Scale) -> Any:
    import numpy

    if scale == "log accuracy":
        return -numpy.log(numpy.maximum(values, LEAST))
    if scale == "log loss":
        return numpy.log(numpy.maximum(values, LEAST))
    return 1.0 - values if scale == "error" else values


def _back(y: Any, scale: Scale) -> Any:
    import numpy

    if scale == "log accuracy":
        return numpy.exp(-y)
    if scale == "log loss":
        return numpy.exp(y)
    return 1.0 - y if scale == "error" else y
