"""Catastrophic forgetting: what was learnt is lost again, in the loss, on an older domain, or item by item."""

from __future__ import annotations

import numpy

from autoeval.diagnosis.finding import Finding, Level
from autoeval.diagnosis.robust import noise, running_median
from autoeval.diagnosis.series import Series, training_loss, upturn, validation_losses
from autoeval.diagnosis.training_log import TrainingLog

JUMP = 0.05  # least rise of the loss, as a share of it
JUMP_HIGH = 0.10
LOST_HIGH, LOST_MEDIUM = 0.2, 0.05  # share of all iterations whose progress is gone, or that it took to recover
LEAST = 48  # points of the training curve
DOMAIN_HIGH, DOMAIN_MEDIUM = 0.05, 0.02  # rise of an older domain's loss, as a share of its lowest


def forgetting(log: TrainingLog) -> list[Finding]:
    """Findings in the log; those in the ledger are ``flips.forgotten_items``."""
    train = training_loss(log)
    sets = validation_losses(log)
    return [*_jumped_back(train, sets), *_older_domains(sets, train)]


def _jumped_back(train: Series, sets: dict[str, Series]) -> list[Finding]:
    """The largest lasting step upwards, and how far back the curve was as high as after it."""
    if len(train) < LEAST:
        return []
    window = max(8, len(train) // 50)
    y = train.y
    before = running_median(y, window)
    after = running_median(y[::-1], window)[::-1]  # medians from each point on
    places = numpy.arange(window, len(y) - window // 2)
    if not len(places):
        return []
    steps = after[places] - before[places - 1]
    spread = noise(y) * 1.2533 * numpy.sqrt(2.0 / window)  # of a difference of two medians of so many points
    place = int(places[steps.argmax()])
    step, was, now = float(steps.max()), float(before[place - 1]), float(after[place])
    if was <= 0 or step < JUMP * was or step < 6 * spread:
        return []
    # Up to here a rise that wears off within a window is a spike; what is asked for is a level that stays.
    later = running_median(y[place:], window)
    back_again = numpy.nonzero(later[window - 1 :] <= was)[0]
    total = float(train.x[-1] - train.x[0])
    recovered_at = float(train.x[place + window - 1 + back_again[0]]) if len(back_again) else None
    as_high = numpy.nonzero(before[:place] >= now)[0]
    lost_from = float(train.x[as_high[-1]]) if len(as_high) else float(train.x[0])
    at = float(train.x[place])
    lost = (at - lost_from) / total
    level = _jump_level(step / was, lost, None if recovered_at is None else (recovered_at - at) / total)
    if level != "Low" and _validation_says_no(sets, at):
        return []
    if level == "Low":
        return []
    values: dict[str, float | str] = {
        "before": was,
        "after": now,
        "rise_percent": 100 * step / was,
        "noise": spread,
        "as_at": lost_from,
        "lost_percent": 100 * lost,
    }
    if recovered_at is None:
        return [Finding("jumped_back", level, at, float(train.x[-1]), values)]
    return [Finding("jumped_back_recovered", level, at, recovered_at, values)]


def _jump_level(rise: float, lost: float, recovery: float | None) -> Level:
    """``lost`` and ``recovery`` are shares of the run; ``recovery`` is ``None`` when it has not recovered."""
    if recovery is None:
        return "High" if rise >= JUMP_HIGH and lost >= LOST_HIGH else "Medium" if lost >= LOST_MEDIUM else "Low"
    return "Medium" if recovery >= LOST_MEDIUM and lost >= LOST_MEDIUM else "Low"


def _validation_says_no(sets: dict[str, Series], at: float) -> bool:
    """Whether validation losses on both sides of ``at`` did not rise: then the training data changed, nothing else."""
    said = False
    for points in sets.values():
        before, after = points.between(-numpy.inf, at), points.between(at, numpy.inf)
        if len(before) and len(after):
            said = True
            if after.y[0] > before.y[-1] * (1 + JUMP / 2):
                return False
    return said


def _older_domains(sets: dict[str, Series], train: Series) -> list[Finding]:
    """Some validation sets turn up while others do not: those are forgotten. All of them is overfitting."""
    sets = {name: points for name, points in sets.items() if len(points) >= 3}
    turns = {name: turn for name, points in sets.items() if (turn := upturn(points, train)) is not None}
    rising = {name: turn for name, turn in turns.items() if turn.sure and turn.relative_rise >= DOMAIN_MEDIUM}
    if len(sets) < 2 or len(rising) * 2 > len(sets) or len(rising) == len(sets):
        return []
    return [
        Finding(
            "older_domain",
            "High" if turn.relative_rise >= DOMAIN_HIGH else "Medium",
            turn.minimum_at,
            turn.last_at,
            {
                "set": name,
                "minimum": turn.minimum,
                "rise": turn.rise,
                "rise_percent": 100 * turn.relative_rise,
                "noise": turn.sigma,
                "others": len(sets) - len(rising),
            },
        )
        for name, turn in rising.items()
    ]
