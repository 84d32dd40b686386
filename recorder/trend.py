"""Is training still worth it? What the next tokens are expected to bring, and whether the benchmark could see it.

A saturating power law is fitted to the course of each task and of the average (``recorder.power_law``), each time
again for checkpoints and items drawn anew, so that the answer has an interval. It holds while the learning rate goes
on as it does: nothing here knows of a decay that is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from recorder.baselines import Baseline
from recorder.benchmark_health import benchmark_health
from recorder.leaderboard import leaderboard, main_metrics, metric_key
from recorder.ledger import Outcomes, ScoreRow
from recorder.power_law import Course, Fits, bootstrap, representatives
from recorder.statistics import (
    LEVEL,
    LevelTrend,
    holm,
    level_trend,
    minimal_detectable_effect,
    paired_difference,
    with_spread,
)
from recorder.verdict import NO_ITEMS, ItemsOf, compared

Word = Literal["worth it", "not worth it", "falling", "cannot tell", "too early"]

AVERAGE = "average"
ENOUGH = 5  # checkpoints below which no curve is fitted
AHEAD = 0.5  # of the training so far: what is looked ahead when nobody says how much is planned
FAR = 10.0  # times the training so far, beyond which no token count is given
ENOUGH_FOR_NOISE = 6  # checkpoints from which on their scatter is known well enough
MISFIT = 2.0  # times that the newest checkpoints may lie farther from the law than from a straight line
TREND_OVER = 8  # checkpoints whose straight line says whether the score is falling now


@dataclass(frozen=True)
class Reach:
    """When a baseline's value is reached: ``at`` tokens (or iterations) with a 90 % interval.

    ``None`` stands for "not within ten times the training so far". ``reached`` when the newest level is there already.
    """

    baseline: str
    value: float
    reached: bool
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Outlook:
    """One task's (or the average's) future. ``x`` counts billions of tokens, or iterations without tokens.

    ``gain`` is what the next ``ahead`` of x are expected to bring (up is good), ``low`` to ``high`` its 90 % interval.
    ``detectable`` is the smallest difference that this benchmark finds between two checkpoints (80 % power, 5 % level),
    told from ``detectable_from``: the items of the last two, else the scatter of the course (the same items are asked
    at each checkpoint, so what they share cancels there too), else two independent scores.
    ``curve`` is the fitted course as (x, value, low, high), up to ``now + ahead``. ``exponent`` and ``floor`` belong to
    the fitted law. ``trend`` is the straight line through the newest checkpoints. ``by`` says what the expectation comes
    from: a line over as much of x as lies ahead where the course rises and plainly does not follow the law.
    """

    metric: str  # <task>.<metric>, or "average"
    word: Word
    checkpoints: int
    unit: Literal["tokens", "iterations"]
    now: float
    ahead: float
    value: float
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    detectable_from: Literal["items", "course", "scores"] = "scores"
    chance_of_detectable: float | None = None
    by: Literal["power law", "line"] = "power law"
    exponent: float | None = None
    floor: float | None = None
    trend: LevelTrend | None = None
    reaches: tuple[Reach, ...] = ()
    curve: tuple[tuple[float, float, float, float], ...] = field(default=(), repr=False)

    @property
    def below_detectable(self) -> bool:
        """Even the optimistic end of the interval is less than this benchmark can detect."""
        return self.high is not None and self.detectable is not None and self.high < self.detectable

    @property
    def sentence(self) -> str:
        """For a person: what is expected, and what that means."""
        if self.gain is None or self.low is None or self.high is None:
            return f"{self.metric}: {self.checkpoints} checkpoints are too few for a curve ({ENOUGH} are needed)."
        what = f"{self.ahead:,.4g} billion tokens" if self.unit == "tokens" else f"{self.ahead:,.0f} iterations"
        text = f"{self.metric}: the next {what} are expected to bring {self.gain:+.4f} ({self.low:+.4f} to {self.high:+.4f})"
        if self.word == "falling":
            return f"{text}; over the last {self.trend.points if self.trend else 0} checkpoints it has been falling."
        if self.below_detectable:
            return f"{text}: the gain is below what this benchmark can detect ({self.detectable:.4f})."
        if self.detectable is None:
            return f"{text}; without standard errors nobody can say what would be seen of it."
        meaning = {"worth it": "more than", "not worth it": "less than"}.get(self.word, "which may be less than")
        return f"{text}, {meaning} the {self.detectable:.4f} that this benchmark can detect."


@dataclass(frozen=True)
class Worth:
    """``average`` is the mean of the chance-corrected tasks in ``averaged``, those that carry signal; the headline.

    ``tasks`` by name.
    """

    model: str
    average: Outlook | None
    tasks: tuple[Outlook, ...]
    averaged: tuple[str, ...] = ()

    @property
    def word(self) -> Word:
        return self.headline.word if self.headline is not None else "too early"

    @property
    def headline(self) -> Outlook | None:
        return self.average if self.average is not None else (self.tasks[0] if len(self.tasks) == 1 else None)

    @property
    def sentence(self) -> str:
        """One sentence: go on or not, why, and what would change the answer."""
        one = self.headline
        if one is None or one.gain is None:
            return f"Too early to say whether training is still worth it: {ENOUGH} checkpoints are needed."
        falling = [task.metric for task in self.tasks if task.word == "falling"]
        verdict = {
            "worth it": "Training is still worth it.",
            "not worth it": "Stopping is defensible.",
            "falling": "The model is getting worse.",
            "cannot tell": "Whether training is still worth it cannot be told yet.",
            "too early": "Too early to say.",
        }[one.word]
        also = f" Falling: {', '.join(falling)}." if falling and one.word != "falling" else ""
        changes = {
            "worth it": " The next checkpoints below the fitted curve would change this.",
            "not worth it": " A benchmark with more items, or a lower learning rate, could change this.",
            "falling": " Two checkpoints back on the old level would change this.",
        }.get(one.word, " More checkpoints or a benchmark with more items would change this.")
        return f"{verdict} {one.sentence[0].upper()}{one.sentence[1:]}{also}{changes}"


def worth(
    scores: Sequence[ScoreRow],
    model: str,
    *,
    baselines: Sequence[Baseline] = (),
    items: ItemsOf = NO_ITEMS,
    ahead: float | None = None,
    up_to: int | None = None,
    draws: int = 400,
) -> Worth | None:
    """Whether ``model`` should be trained on; ``None`` when it has no scores.

    ``ahead``: billions of tokens (iterations, where no tokens are known) that are planned next; half of the training
    so far when nobody says. ``up_to``: as if the run had been stopped at this iteration. ``items`` is
    ``ledger.outcomes``. The same input gives the same answer.
    """
    mine = [row for row in scores if row.model == model and (up_to is None or row.iteration <= up_to)]
    if not mine:
        return None
    main = main_metrics(mine, baselines)
    mine = compared(mine, main)
    if not mine:  # nothing but further metrics of tasks whose first one is not among these
        return Worth(model, None, ())
    axis = _axis(mine)
    planned = ahead if ahead is not None else AHEAD * max(axis.x.values())
    outcomes = cache(lambda at: items(model, at))
    wanted = set(main.values()) | {metric_key(row) for row in mine if not row.higher_is_better and row.value > 0}
    courses: dict[str, list[ScoreRow]] = {key: [] for key in sorted(wanted)}
    for row in sorted(mine, key=lambda row: row.iteration):
        if (key := metric_key(row)) in courses:
            courses[key].append(row)
    tasks = []
    for key, rows in courses.items():
        start, course = _course_of_task(rows, axis, planned, outcomes)
        levels = {one.name: one.values[key] for one in baselines if key in one.values}
        tasks.append(_outlook(start, course, levels, draws))
    tasks = _falling(tasks)
    drawn = [row for rows in courses.values() for row in rows]
    loud = {one.metric for one in benchmark_health(drawn, model, baselines=baselines) if one.word in ("signal", "weak")}
    averaged = sorted(loud & set(main.values()))
    average = _of_average([row for key in averaged for row in courses[key]], axis, planned, baselines, draws)
    return Worth(model, average, tuple(tasks), tuple(averaged) if average is not None else ())


@dataclass(frozen=True)
class _Axis:
    """What stands on x: billions of tokens where all checkpoints know theirs, by iteration."""

    unit: Literal["tokens", "iterations"]
    x: Mapping[int, float]


def _axis(rows: Sequence[ScoreRow]) -> _Axis:
    if all(row.tokens is not None for row in rows):
        return _Axis("tokens", {row.iteration: row.tokens or 0.0 for row in rows})
    return _Axis("iterations", {row.iteration: float(row.iteration) for row in rows})


def _course_of_task(
    rows: Sequence[ScoreRow], axis: _Axis, ahead: float, items: Callable[[int], Mapping[str, Outcomes]]
) -> tuple[Outlook, Course]:
    key, last = metric_key(rows[-1]), rows[-1]
    x = tuple(axis.x[row.iteration] for row in rows)
    places = sorted({*representatives(x), *range(max(0, len(rows) - 2), len(rows))})
    outcomes = [items(rows[place].iteration).get(key, Outcomes()) for place in places]
    common = sorted(set(outcomes[0].values).intersection(*(one.values for one in outcomes[1:])))
    drawn = {place: [one.values[item] for item in common] for place, one in zip(places, outcomes, strict=True)}
    course = Course(x, tuple(row.value for row in rows), _scale(last), drawn if common else {})
    start = Outlook(key, "too early", len(rows), axis.unit, course.x[-1], ahead, last.value)
    if len(rows) > 1 and len(common) > 1:
        new, old = outcomes[-1], outcomes[-2]
        difference = paired_difference(new.values, old.values, {**old.clusters, **new.clusters})
        if difference is not None:
            return replace(start, detectable=difference.detectable, detectable_from="items"), course
    spread = with_spread(last.value, last.stderr, last.n)
    return (start if spread is None else replace(start, detectable=minimal_detectable_effect(2**0.5 * spread))), course


def _of_average(
    rows: Sequence[ScoreRow], axis: _Axis, ahead: float, baselines: Sequence[Baseline], draws: int
) -> Outlook | None:
    board = leaderboard(rows, baselines, which="all") if rows else []
    own = sorted((r for r in board if not r.is_baseline and r.score is not None), key=lambda r: r.iteration or 0)
    if not own or len(own[-1].averaged) < 2:
        return None
    last = own[-1]
    course = Course(tuple(axis.x[r.iteration or 0] for r in own), tuple(r.score or 0.0 for r in own), "error")
    start = Outlook(AVERAGE, "too early", len(own), axis.unit, course.x[-1], ahead, last.score or 0.0)
    levels = {row.model: row.score for row in board if row.is_baseline and row.score is not None}
    if last.stderr is not None:
        start = replace(start, detectable=minimal_detectable_effect(2**0.5 * last.stderr))
    return _outlook(start, course, levels, draws)


def _falling(tasks: Sequence[Outlook]) -> list[Outlook]:
    """Of the tasks that seem to be falling those that are after Holm's correction for their number."""
    trends = [task.trend.p_value if task.trend is not None else 1.0 for task in tasks]
    return [
        replace(task, word=_word(replace(task, trend=None))) if task.word == "falling" and p >= LEVEL else task
        for task, p in zip(tasks, holm(trends), strict=True)
    ]


def _scale(row: ScoreRow) -> Literal["log accuracy", "error", "loss", "log loss"]:
    """On which scale the course is a power law: bits per byte as it is, perplexity as a loss, accuracy by its log."""
    if row.higher_is_better:
        return "log accuracy"
    return "log loss" if "ppl" in row.metric.lower() or "perplexity" in row.metric.lower() else "loss"


def _outlook(start: Outlook, course: Course, wanted: Mapping[str, float], draws: int) -> Outlook:
    sign = -1.0 if course.scale in ("loss", "log loss") else 1.0
    trend = level_trend(course.x, [sign * value for value in course.values], TREND_OVER)
    if len(course.x) < ENOUGH:
        return replace(start, trend=trend)
    fits = bootstrap(course, draws)
    if fits is None:
        return replace(start, trend=trend)
    if start.detectable_from != "items" and fits.checkpoints >= ENOUGH_FOR_NOISE and fits.scatter > 0:
        detectable = minimal_detectable_effect(2**0.5 * fits.scatter)
        start = replace(start, detectable=detectable, detectable_from="course")
    gain, low, high = fits.gain(start.now, start.ahead)
    chance = None if start.detectable is None else fits.share_of_gains_above(start.now, start.ahead, start.detectable)
    reaches = tuple(
        Reach(name, value, sign * start.value >= sign * value, *fits.reach(value, start.now, FAR * start.now))
        for name, value in sorted(wanted.items())
    )
    found = replace(
        start,
        gain=gain,
        low=low,
        high=high,
        chance_of_detectable=chance,
        exponent=fits.exponent,
        floor=fits.floor,
        trend=trend,
        reaches=reaches,
        curve=fits.curve(start.now + start.ahead),
    )
    line = _line(course, fits, start, sign)
    if line is not None:
        found = _by_line(found, line, sign)
    if course.scale in ("log accuracy", "error") and all(one <= 1.0 for one in course.values):
        found = _below_one(found)
    return replace(found, word=_word(found))


def _below_one(found: Outlook) -> Outlook:
    """Neither law nor line knows a ceiling, but a share cannot pass 1."""
    assert found.gain is not None and found.low is not None and found.high is not None
    most = 1.0 - found.value
    return replace(found, gain=min(found.gain, most), low=min(found.low, most), high=min(found.high, most))


def _line(course: Course, fits: Fits, start: Outlook, sign: float) -> LevelTrend | None:
    """A straight line that rises and fits far better than the law; seen for as long as it is to be carried on."""
    last = sum(x >= start.now - start.ahead for x in course.x)
    line = level_trend(course.x, [sign * value for value in course.values], last)
    if line is None or line.slope <= 0 or line.p_value >= LEVEL:
        return None
    off = float(((fits.fitted(course.x[-line.points :]) - course.values[-line.points :]) ** 2).sum())
    return line if math.sqrt(off / line.points) > MISFIT * line.scatter else None


def _by_line(found: Outlook, trend: LevelTrend, sign: float) -> Outlook:
    """The straight line carried on: a law that saturates would promise too little."""
    width = trend.change / trend.slope
    low, high = trend.low / width, trend.high / width  # slopes
    if found.detectable_from == "course":
        found = replace(found, detectable=minimal_detectable_effect(2**0.5 * trend.scatter))

    def at(reach: Reach, slope: float) -> float | None:
        x = found.now + max(0.0, sign * (reach.value - found.value)) / slope if slope > 0 else FAR * found.now + 1
        return x if x <= FAR * found.now else None

    return replace(
        found,
        by="line",
        gain=trend.slope * found.ahead,
        low=low * found.ahead,
        high=high * found.ahead,
        chance_of_detectable=None,
        reaches=tuple(replace(r, at=at(r, trend.slope), low=at(r, high), high=at(r, low)) for r in found.reaches),
        exponent=None,
        floor=None,
        curve=(),
    )


def _word(outlook: Outlook) -> Word:
    trend = outlook.trend
    if trend is not None and trend.slope < 0 and trend.p_value < LEVEL:
        return "falling"
    if outlook.gain is None or outlook.low is None or outlook.detectable is None:
        return "cannot tell"
    if outlook.low > 0 and outlook.gain >= outlook.detectable:
        return "worth it"
    return "not worth it" if outlook.below_detectable else "cannot tell"
