"""Underfitting: the loss stands still, and stands high for this curve, this model size or any language model."""

from __future__ import annotations

import math

import numpy

from autoeval.diagnosis.finding import Finding, Level
from autoeval.diagnosis.robust import power_law, theil_sen
from autoeval.diagnosis.series import Series, trained_from_scratch, training_loss, validation_losses
from autoeval.diagnosis.training_log import TrainingLog

PLATEAU = 0.01  # fall of the loss, as a share of it, in a doubling of the iterations
LEAST = 40  # points
FIT_HIGH, FIT_MEDIUM = 0.15, 0.05  # share by which the loss lies above its own extrapolation
SIZE_HIGH, SIZE_MEDIUM = 1.5, 1.0  # nats above what the model size and its tokens allow
LEVEL_HIGH, LEVEL_MEDIUM = 5.5, 4.5  # nats, of a model trained from scratch whose size is not known
LEARNT = 0.02  # share of the first loss that fine-tuning should at least have taken away
LEAST_TUNING = 200  # rows, or one epoch, before that is asked


def expected_loss(parameters: float, tokens: float) -> float:
    """1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 nats a token.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), equation 10. Other tokenizers and data move it by some tenths.
    """
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def underfitting(log: TrainingLog) -> list[Finding]:
    """Findings of all rules; see docs/diagnosis.md. A loss that still falls is never underfitting."""
    train = training_loss(log)
    train = Series(train.x[train.x > 0], train.y[train.x > 0])
    if len(train) < LEAST or (share := _fall_in_a_doubling(train)) is None or share >= PLATEAU:
        return []
    level = float(numpy.median(_last_tenth(train)))
    seen: dict[str, float | str] = {"loss": level, "fall_percent": 100 * share}
    findings = []
    if trained_from_scratch(train):
        findings += _against_size(log, train, level, seen) or _against_any(log, train, level, seen)
    else:
        findings += _learnt_nothing(log, train, level, seen)
    return [*findings, *_against_own_fit(train, level, seen)]


def _fall_in_a_doubling(train: Series) -> float | None:
    """Relative fall of the loss from half of the iterations to all of them, by the median slope over log2."""
    second = train.between(float(train.x[-1]) / 2, float(train.x[-1]))
    if len(second) < LEAST // 4:
        return None
    middle = float(numpy.median(second.y))
    return -theil_sen(numpy.log2(second.x), second.y) / middle if middle > 0 else None


def _last_tenth(train: Series) -> numpy.ndarray:
    return train.y[-max(5, len(train) // 10) :]


def _found(rule: str, level: Level, train: Series, values: dict[str, float | str]) -> list[Finding]:
    return [Finding(rule, level, float(train.x[-1]) / 2, float(train.x[-1]), values)]


def _against_size(log: TrainingLog, train: Series, level: float, seen: dict[str, float | str]) -> list[Finding]:
    known = log.curve.bins["tokens"]
    tokens = float(numpy.nanmax(known)) if numpy.isfinite(known).any() else math.nan
    if not log.facts.parameters or not tokens > 0:
        return []
    expected = expected_loss(log.facts.parameters, tokens)
    excess = level - expected
    if excess < SIZE_MEDIUM:
        return []
    values: dict[str, float | str] = {
        "parameters": log.facts.parameters,
        "tokens": tokens,
        "expected": expected,
        "excess": excess,
    }
    return _found("above_model_size", "High" if excess >= SIZE_HIGH else "Medium", train, seen | values)


def _against_any(log: TrainingLog, train: Series, level: float, seen: dict[str, float | str]) -> list[Finding]:
    known = log.curve.bins["tokens"]
    if log.facts.parameters and numpy.isfinite(known).any():
        return []  # the size has been asked, and allows it
    if level < LEVEL_MEDIUM:
        return []
    return _found("high_plateau", "High" if level >= LEVEL_HIGH else "Medium", train, seen | {"limit": LEVEL_MEDIUM})


def _against_own_fit(train: Series, level: float, seen: dict[str, float | str]) -> list[Finding]:
    """The curve between 1/16 and 1/2 of the iterations says where the second half should have come to."""
    end = float(train.x[-1])
    early = train.between(end / 16, end / 2)
    if len(early) < LEAST // 2:
        return []
    floor, scale, exponent = power_law(early.x, early.y)
    expected = floor + scale * end**-exponent
    excess = level / expected - 1 if expected > 0 else 0.0
    if excess < FIT_MEDIUM:
        return []
    values: dict[str, float | str] = {"expected": expected, "excess_percent": 100 * excess, "exponent": exponent}
    return _found("above_own_fit", "High" if excess >= FIT_HIGH else "Medium", train, seen | values)


def _learnt_nothing(log: TrainingLog, train: Series, level: float, seen: dict[str, float | str]) -> list[Finding]:
    """Of fine-tuning, whose model's size says nothing about its loss; not where a scaling law could be asked."""
    epochs = log.curve.bins["epoch"]
    epoch = float(numpy.nanmax(epochs)) if numpy.isfinite(epochs).any() else 0.0
    if log.facts.parameters or (len(train) < LEAST_TUNING and epoch < 1):
        return []
    start = float(numpy.median(train.y[: max(5, len(train) // 20)]))
    if level < (1 - LEARNT) * start or level < 0.05:
        return []
    for points in validation_losses(log).values():
        if float(points.y.min()) < (1 - LEARNT) * float(points.y[0]):
            return []
    share = 100 * (1 - level / start)
    worse: Level = "High" if level >= start and len(train) >= 2 * LEAST_TUNING else "Medium"
    return _found("learnt_nothing", worse, train, seen | {"start": start, "learnt_percent": share})
