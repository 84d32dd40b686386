"""The series that the rules look at, taken from a log: training loss, validation losses, what they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from autoeval.diagnosis.robust import noise, slope_interval
from autoeval.diagnosis.training_log import TrainingLog


@dataclass(frozen=True)
class Series:
    """Values at iterations, both of shape (n,), finite, in the order of the iterations."""

    x: numpy.ndarray
    y: numpy.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def between(self, first: float, last: float) -> Series:
        """The part with first < x <= last."""
        inside = (self.x > first) & (self.x <= last)
        return Series(self.x[inside], self.y[inside])


def training_loss(log: TrainingLog) -> Series:
    y = log.curve.loss
    good = numpy.isfinite(y)
    return Series(log.curve.bins["last"][good], y[good])


def validation_losses(log: TrainingLog) -> dict[str, Series]:
    """By name of the set, those with a finite value."""
    found = {}
    for name, points in sorted(log.validations.items()):
        finite = sorted((x, y) for x, y in points.items() if numpy.isfinite(y))
        if finite:
            x, y = zip(*finite, strict=True)
            found[name] = Series(numpy.array(x), numpy.array(y))
    return found


def trained_from_scratch(train: Series) -> bool:
    """Whether the first losses are those of a model that knows nothing: near ln(vocabulary), 8 nats or more."""
    return len(train) > 0 and float(train.y[:3].max()) >= 8.0


@dataclass(frozen=True)
class Upturn:
    """How a validation loss went on after its minimum.

    ``rise`` is from the minimum to the median of the last (at most 3) values; ``slope_low`` and ``slope_high`` the 90 %
    interval of the slope after it (NaN below 4 points); ``gap_growth`` how much further the training loss fell below.
    ``sure`` means beyond the noise: more than 6 of its standard deviations (the minimum is chosen, so it lies about 2
    too low), or more than 3 and certainly rising.
    """

    minimum_at: float
    minimum: float
    last_at: float
    rise: float
    points_after: int
    sigma: float
    slope_low: float
    slope_high: float
    gap_growth: float
    train_fell: float

    @property
    def relative_rise(self) -> float:
        return self.rise / abs(self.minimum) if self.minimum else 0.0

    @property
    def relative_growth(self) -> float:
        return self.gap_growth / abs(self.minimum) if self.minimum else 0.0

    @property
    def sure(self) -> bool:
        certainly_rising = self.rise > 3 * self.sigma and self.slope_low > 0
        return self.points_after >= 2 and (self.rise > 6 * self.sigma or certainly_rising)


def upturn(validation: Series, train: Series) -> Upturn | None:
    """``None`` below 3 validations, or when the last is the lowest."""
    if len(validation) < 3:
        return None
    lowest = int(validation.y.argmin())
    after = validation.y[lowest + 1 :]
    if not len(after):
        return None
    train = comparable(train, validation)
    rise = float(numpy.median(after[-3:]) - validation.y[lowest])
    low = high = numpy.nan
    if len(after) >= 4:
        low, high = slope_interval_after(validation, lowest)
    at, end = float(validation.x[lowest]), float(validation.x[-1])
    fell = _train_near(train, validation, lowest) - _train_near(train, validation, len(validation) - 1)
    return Upturn(
        at,
        float(validation.y[lowest]),
        end,
        rise,
        len(after),
        noise(validation.y[max(0, min(lowest - 3, len(validation) - 8)) :]),  # nearby: a steep beginning is no noise
        low,
        high,
        rise + fell,
        fell,
    )


def comparable(train: Series, validation: Series) -> Series:
    """``train``, or nothing of it when it is on another scale than ``validation`` (a sum over accumulated batches)."""
    for index in range(len(validation)):
        near = _train_near(train, validation, index)
        if numpy.isfinite(near):
            same = validation.y[index] / 4 <= near <= validation.y[index] * 4
            return train if same else Series(numpy.empty(0), numpy.empty(0))
    return train


def slope_interval_after(validation: Series, lowest: int) -> tuple[float, float]:
    """Of the points after the minimum, without it: it is the lowest by choice and would tilt the slope."""
    return slope_interval(validation.x[lowest + 1 :], validation.y[lowest + 1 :])


def _train_near(train: Series, validation: Series, index: int) -> float:
    """Median training loss between the validation before ``index`` and it; NaN when the log tells none."""
    before = float(validation.x[index - 1]) if index else -numpy.inf
    part = train.between(before, float(validation.x[index]))
    if not len(part):
        part = train.between(-numpy.inf, float(validation.x[index]))
        part = Series(part.x[-1:], part.y[-1:])
    return float(numpy.median(part.y)) if len(part) else numpy.nan
