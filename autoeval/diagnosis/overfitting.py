"""Overfitting: the validation loss turns up, or stays, while the training loss goes on falling."""

from __future__ import annotations

import math

import numpy

from autoeval.diagnosis.finding import Finding, Level
from autoeval.diagnosis.robust import noise
from autoeval.diagnosis.series import (
    Series,
    Upturn,
    comparable,
    trained_from_scratch,
    training_loss,
    upturn,
    validation_losses,
)
from autoeval.diagnosis.training_log import TrainingLog

# Shares of the lowest validation loss.
RISE_HIGH, RISE_MEDIUM = 0.05, 0.005
RISE_WITH_GAP = 0.01  # enough for High when the gap to the training loss grew by GAP as well
GAP = 0.05
STALLED_GAP = 0.10  # growth of the gap that is Medium although validation has not turned up
# Nats a token of the training loss of a model trained from scratch, without validation: text has more entropy.
MEMORISED_HIGH, MEMORISED_MEDIUM = 0.3, 0.7
STAIR = 0.10  # fall of the training loss at the border of an epoch


def overfitting(log: TrainingLog) -> list[Finding]:
    """Findings of all rules; see docs/diagnosis.md. With several validation sets at least half of them must turn up."""
    train = training_loss(log)
    sets = validation_losses(log)
    findings = [finding for name, points in sets.items() if (finding := _turned_up(name, points, train)) is not None]
    if len(findings) * 2 < len([points for points in sets.values() if len(points) >= 3]):
        findings = []  # of the few that rise, catastrophic forgetting tells
    if not findings and len(sets) == 1:
        findings = _gap_only(next(iter(sets.values())), train)
    if not any(len(points) >= 2 for points in sets.values()):
        findings = [*_memorised(train), *_stairs(log, train)]
    return findings


def _turned_up(name: str, points: Series, train: Series) -> Finding | None:
    turn = upturn(points, train)
    if turn is None or (level := _level(turn)) == "Low":
        return None
    return Finding(
        "validation_upturn",
        level,
        turn.minimum_at,
        turn.last_at,
        {
            "set": name or "validation",
            "minimum": turn.minimum,
            "rise": turn.rise,
            "rise_percent": 100 * turn.relative_rise,
            "noise": turn.sigma,
            "points_after": turn.points_after,
            "slope_low": turn.slope_low,
            "slope_high": turn.slope_high,
            "train_fell": turn.train_fell,
            "gap_growth_percent": 100 * turn.relative_growth,
        },
    )


def _level(turn: Upturn) -> Level:
    train_known = math.isfinite(turn.train_fell)
    if train_known and turn.train_fell < -0.5 * turn.rise:
        return "Low"  # the training loss rose as well: whatever this is, it is not overfitting
    if turn.sure and turn.relative_rise >= RISE_HIGH:
        return "High"
    if turn.sure and turn.relative_rise >= RISE_WITH_GAP and train_known and turn.relative_growth >= GAP:
        return "High"
    falling = train_known and turn.train_fell > 0
    if turn.relative_rise >= RISE_MEDIUM and (turn.sure or (falling and turn.rise > 5 * turn.sigma)):
        return "Medium"
    return "Low"


def _gap_only(points: Series, train: Series) -> list[Finding]:
    """Validation stands still over its second half while the training loss falls away from it."""
    half = len(points) // 2
    train = comparable(train, points)
    if len(points) < 6 or not len(train):
        return []
    first = points.between(float(points.x[half - 1]), float(points.x[half + max(1, half // 4)]))
    last = Series(points.x[-3:], points.y[-3:])
    before = train.between(float(points.x[half - 1]), float(first.x[-1]))
    after = train.between(float(points.x[-3]), float(points.x[-1]))
    if not len(before) or not len(after):
        return []
    gained = float(numpy.median(first.y) - numpy.median(last.y))
    train_gained = float(numpy.median(before.y) - numpy.median(after.y))
    growth = (train_gained - gained) / abs(float(points.y.min()))
    if growth < STALLED_GAP or gained > 0.2 * train_gained:
        return []
    values = {"gained": gained, "train_fell": train_gained, "gap_growth_percent": 100 * growth}
    return [Finding("gap_growth", "Medium", float(first.x[0]), float(points.x[-1]), dict(values))]


def _memorised(train: Series) -> list[Finding]:
    if not trained_from_scratch(train) or len(train) < 32:
        return []
    recent = float(numpy.median(train.y[-max(16, len(train) // 20) :]))
    if recent >= MEMORISED_MEDIUM:
        return []
    below = train.x[train.y < MEMORISED_MEDIUM]
    level: Level = "High" if recent < MEMORISED_HIGH else "Medium"
    values = {"loss": recent, "start": float(train.y[:3].max()), "limit": MEMORISED_MEDIUM}
    return [Finding("memorised", level, float(below[0]), float(train.x[-1]), dict(values))]


def _stairs(log: TrainingLog, train: Series) -> list[Finding]:
    """The training loss falls at the borders of epochs: it is lower on data that was seen before."""
    known = numpy.isfinite(log.curve.loss) & numpy.isfinite(log.curve.bins["epoch"])
    if known.sum() < 40:
        return []
    epoch, loss = log.curve.bins["epoch"][known], log.curve.loss[known]
    x = log.curve.bins["last"][known]
    falls = []
    for border in range(1, math.ceil(epoch[-1])):
        parts = [loss[(epoch > border + a) & (epoch <= border + a + 0.2)] for a in (-0.4, -0.2, 0.0)]
        if min(map(len, parts)) < 4:
            continue
        earlier, before, after = (float(numpy.median(part)) for part in parts)
        spread = noise(parts[1]) / math.sqrt(len(parts[1]))
        fall = before - after
        if before > 0 and fall >= STAIR * before and fall > 3 * abs(earlier - before) and fall > 3 * spread:
            falls.append((border, fall / before))
    if not falls:
        return []
    first = float(x[epoch > falls[0][0]][0])
    most = max(falls, key=lambda fall: fall[1])
    values: dict[str, float | str] = {"epochs": len(falls), "border": most[0], "fall_percent": 100 * most[1]}
    return [Finding("epoch_stairs", "Medium", first, float(train.x[-1]), values)]
