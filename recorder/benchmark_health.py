"""Which benchmarks carry signal at all, so that nobody decides on noise.

Asked of one run's course over training: does the score rise steadily, does it rise by more than it scatters from
checkpoint to checkpoint, and is it above guessing? The rules are those by which FineWeb-2's tasks were selected
(monotonicity, signal to noise, non-randomness: Penedo et al. 2025, arXiv 2506.20920, section 4) and the noise that of
Heineman et al. 2025 (arXiv 2508.13144).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import correlation
from typing import Literal

from recorder.baselines import Baseline
from recorder.leaderboard import main_metrics, metric_key
from recorder.ledger import ScoreRow
from recorder.statistics import checkpoint_noise, mean, minimal_detectable_effect, with_spread

Signal = Literal["signal", "weak", "no signal", "too early"]

ENOUGH = 4  # checkpoints below which nothing is said
STEADY = 0.5  # Spearman's correlation of score and training
ABOVE_CHANCE = 3.0  # standard deviations of the level
CLEAR = 3.0  # rise over scatter


@dataclass(frozen=True)
class BenchmarkHealth:
    """``signal`` is the rise from the first to the last checkpoints, good being up; ``noise`` one checkpoint's scatter.

    ``monotonicity`` is Spearman's correlation of the score with training. ``above_chance`` is the distance of the last
    checkpoints' level from guessing in standard errors, ``None`` where guessing is not known. ``detectable`` is the
    smallest difference between two checkpoints that 80 % of comparisons of independent items would find; paired
    comparisons find smaller ones. ``reasons`` say why the word is not "signal".
    """

    model: str
    metric: str  # <task>.<metric>
    word: Signal
    checkpoints: int
    level: float
    signal: float
    noise: float | None
    monotonicity: float | None
    above_chance: float | None
    chance: float | None
    detectable: float | None
    reasons: tuple[str, ...] = ()

    @property
    def snr(self) -> float | None:
        """Signal to noise: how many times its scatter the score has moved."""
        return None if not self.noise else abs(self.signal) / self.noise


def benchmark_health(
    scores: Sequence[ScoreRow], model: str, *, baselines: Sequence[Baseline] = (), every_metric: bool = False
) -> list[BenchmarkHealth]:
    """Each task of ``model`` by its main metric (or first one), or every metric; by name."""
    mine = [row for row in scores if row.model == model]
    main = set(main_metrics(mine, baselines).values())
    averaged = {key.rpartition(".")[0] for key in main}
    wanted = main | {metric_key(row) for row in mine if row.position == 0 and row.task not in averaged}
    courses: dict[str, list[ScoreRow]] = defaultdict(list)
    for row in mine:
        if every_metric or metric_key(row) in wanted:
            courses[metric_key(row)].append(row)
    return [_health(sorted(rows, key=lambda row: row.iteration)) for _, rows in sorted(courses.items())]


def _health(rows: Sequence[ScoreRow]) -> BenchmarkHealth:
    sign = 1.0 if rows[-1].higher_is_better else -1.0
    values = [row.value for row in rows]
    few = max(1, min(3, len(values) // 2))
    level = mean(values[-few:])
    last = rows[-1]
    spread = with_spread(last.value, last.stderr, last.n)
    noise = checkpoint_noise(values, [float(row.iteration) for row in rows])
    signal = sign * (level - mean(values[:few]))
    above = None
    if last.chance is not None:
        # items are the same at every checkpoint, so averaging checkpoints does not make their error smaller
        error = math.hypot(spread or 0.0, (noise or 0.0) / math.sqrt(few))
        above = sign * (level - last.chance) / error if error > 0 else None
    health = BenchmarkHealth(
        model=last.model,
        metric=metric_key(last),
        word="too early",
        checkpoints=len(rows),
        level=level,
        signal=signal,
        noise=noise,
        monotonicity=_spearman([row.iteration for row in rows], [sign * value for value in values]),
        above_chance=above,
        chance=last.chance,
        detectable=None if spread is None else minimal_detectable_effect(math.sqrt(2.0) * spread),
    )
    if len(rows) < ENOUGH:
        return _named(health, "too early", (f"{len(rows)} checkpoints, {ENOUGH} are needed",))
    return _judged(health)


def _judged(health: BenchmarkHealth) -> BenchmarkHealth:
    reasons, at_chance = [], False
    if health.above_chance is not None and health.above_chance < ABOVE_CHANCE:
        at_chance = True
        reasons.append(f"at chance: {health.level:.3f}, guessing gives {health.chance:.3f}")
    steady = health.monotonicity is not None and abs(health.monotonicity) >= STEADY
    if not steady:
        shown = "none" if health.monotonicity is None else f"{health.monotonicity:+.2f}"
        reasons.append(f"not steady: rank correlation with training {shown}, {STEADY} is needed")
    elif (health.monotonicity or 0.0) < 0:
        reasons.append("it gets worse with training")
    clear = health.noise == 0.0 or (health.snr is not None and health.snr >= CLEAR)
    if not clear:
        reasons.append(f"it moved {health.snr or 0.0:.1f} times its scatter, {CLEAR:g} are needed")
    if at_chance or not (steady or clear) or health.signal == 0.0:
        return _named(health, "no signal", tuple(reasons))
    return _named(health, "signal" if steady and clear else "weak", tuple(reasons))


def _named(health: BenchmarkHealth, word: Signal, reasons: tuple[str, ...]) -> BenchmarkHealth:
    return replace(health, word=word, reasons=reasons)


def _spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman 1904 (American Journal of Psychology 15:72); ``None`` when either does not change."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return correlation(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    """Equal values share the mean of their places."""
    places: dict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(sorted(values)):
        places[value].append(place)
    return [(places[value][0] + places[value][-1]) / 2 for value in values]
