"""Risks of the run itself: spikes, what is not finite, divergence, loss scale, schedule, throughput, silence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy

from autoeval.diagnosis.finding import Finding, Level
from autoeval.diagnosis.robust import noise, running_median
from autoeval.diagnosis.series import training_loss
from autoeval.diagnosis.spikes import SpikeDetector
from autoeval.diagnosis.training_log import TrainingLog

OFTEN = 5.0  # spikes in 1000 rows
TALL = 2.0  # times the loss before
SKIPPED_HIGH, SKIPPED_MEDIUM = 0.05, 0.01  # of the iterations, after a dynamic loss scale has found its level
SCALE_FALL = 1024.0
DIVERGED_HIGH, DIVERGED_MEDIUM = 0.5, 0.15  # above the lowest loss
LR_JUMP = 2.0
SLOW_HIGH, SLOW_MEDIUM = 1.5, 1.15
SILENT = 1800.0  # seconds, at least


def loss_spikes(log: TrainingLog, now: float) -> list[Finding]:
    return _spikes("loss_spike", log.loss_spikes)


def grad_norm_spikes(log: TrainingLog, now: float) -> list[Finding]:
    """From three on: a lone one, which clipping takes care of, is ordinary."""
    return _spikes("grad_norm_spike", log.grad_norm_spikes) if log.grad_norm_spikes.count >= 3 else []


def _spikes(rule: str, found: SpikeDetector) -> list[Finding]:
    if not found.episodes:
        return []
    worst = max(found.episodes, key=lambda one: one.z)
    often = 1000.0 * found.count / max(1000, found.judged)
    tall = worst.peak >= TALL * worst.baseline and rule == "loss_spike"
    level: Level = "High" if often >= OFTEN or tall else "Medium"
    values: dict[str, float | str] = {
        "count": found.count,
        "per_thousand": 1000.0 * found.count / max(1, found.judged),
        "worst_at": worst.first,
        "peak": worst.peak,
        "baseline": worst.baseline,
        "z": worst.z,
    }
    return [Finding(rule, level, found.episodes[0].first, found.episodes[-1].last, values)]


def not_finite(log: TrainingLog, now: float) -> list[Finding]:
    """Losses that are NaN or infinite, iterations that are counted as such, iterations that were skipped."""
    bins = log.curve.bins
    if not len(log.curve):
        return []
    findings = []
    bad = bins["not_finite"] + bins["nan"]
    if bad.sum():
        places = numpy.nonzero(bad)[0]
        at_the_end = bool(bins["not_finite"][-1] and not bins["losses"][-1])
        share = float(bad.sum() / bins["rows"].sum())
        level: Level = "High" if at_the_end or share >= SKIPPED_MEDIUM else "Medium"
        values: dict[str, float | str] = {"count": float(bad.sum()), "percent": 100 * share}
        findings.append(Finding("nan_loss", level, *_range(log, places), values))
    settled = _after_the_search_for_a_scale(log)
    skipped = bins["skipped"][settled]
    covered = float(bins["last"][-1] - bins["first"][settled][0]) if settled.any() else 0.0
    if skipped.sum() and covered > 0:
        share = float(skipped.sum() / max(covered, skipped.sum()))
        places = numpy.nonzero(settled)[0][numpy.nonzero(skipped)[0]]
        if share >= SKIPPED_MEDIUM:
            level = "High" if share >= SKIPPED_HIGH else "Medium"
            values = {"count": float(skipped.sum()), "percent": 100 * share}
            findings.append(Finding("skipped_iterations", level, *_range(log, places), values))
    return findings


def _after_the_search_for_a_scale(log: TrainingLog) -> numpy.ndarray:
    """From the first row on without a skipped iteration: fp16 starts with a scale that is too large on purpose."""
    return numpy.cumsum(log.curve.bins["skipped"] == 0) > 0


def _range(log: TrainingLog, places: numpy.ndarray) -> tuple[float, float]:
    return float(log.curve.bins["first"][places[0]]), float(log.curve.bins["last"][places[-1]])


def divergence(log: TrainingLog, now: float) -> list[Finding]:
    train = training_loss(log)
    bins = log.curve.bins
    if len(train) < 3 or log.format is None or log.format.name == "deepspeed-chat":
        return []
    window = max(1, min(16, len(train) // 4))
    smooth = running_median(train.y, window)
    lowest = int(smooth.argmin())
    level_now, level_then = float(smooth[-1]), float(smooth[lowest])
    rise = (level_now - level_then) / abs(level_then) if level_then else 0.0
    spread = noise(train.y) / math.sqrt(window)
    lost = bool(bins["not_finite"][-1] and not bins["losses"][-1])
    if not lost and (rise < DIVERGED_MEDIUM or level_now - level_then < 6 * spread):
        return []
    level: Level = "High" if lost or rise >= DIVERGED_HIGH else "Medium"
    values: dict[str, float | str] = {"lowest": level_then, "loss": level_now, "rise_percent": 100 * rise}
    return [Finding("diverged", level, float(train.x[lowest]), log.last, values)]


def loss_scale_collapse(log: TrainingLog, now: float) -> list[Finding]:
    """A dynamic scale (fp16) that fell and fell: gradients overflow whatever it is."""
    scale, last = log.curve.bins["loss_scale"], log.curve.bins["last"]
    known = numpy.isfinite(scale) & (scale > 0)
    scale, last = scale[known], last[known]
    if len(scale) < 3 or scale.max() == scale.min():
        return []
    fell = numpy.nonzero(numpy.diff(scale) < 0)[0]
    settled = scale[int(numpy.nonzero(numpy.diff(scale) >= 0)[0][0]) :] if len(fell) < len(scale) - 1 else scale
    top = float(settled.max())  # after the search for it at the start
    low = float(scale[-1])
    if low > 1 and (low > 64 or top / low < SCALE_FALL):
        return []
    level: Level = "High" if low <= 1 else "Medium"
    start = float(last[numpy.nonzero(scale >= top)[0][-1]])
    return [Finding("loss_scale_fell", level, start, float(last[-1]), {"highest": top, "scale": low})]


def learning_rate_anomalies(log: TrainingLog, now: float) -> list[Finding]:
    """Jumps upwards after the peak of the schedule, a rate that is not positive too early, rates that are no number."""
    rate, last = log.curve.bins["learning_rate"], log.curve.bins["last"]
    known = numpy.isfinite(rate)
    rate, last = rate[known], last[known]
    if len(rate) < 8:
        return []
    findings = []
    peak = float(rate.max())
    if peak <= 0:
        return [Finding("learning_rate_zero", "High", float(last[0]), float(last[-1]), {"rate": peak})]
    fallen = numpy.nonzero(rate < 0.98 * numpy.maximum.accumulate(rate))[0]
    if len(fallen):
        after = int(fallen[0])
        grew = rate[after + 1 :] > LR_JUMP * numpy.maximum(rate[after:-1], 1e-3 * peak)
        if grew.any():
            places = after + 1 + numpy.nonzero(grew)[0]
            level: Level = "High" if rate[places].max() >= 0.5 * peak and len(places) == 1 else "Medium"
            values: dict[str, float | str] = {
                "count": len(places),
                "before": float(rate[places[0] - 1]),
                "after": float(rate[places[0]]),
            }
            findings.append(
                Finding("learning_rate_jump", level, float(last[places[0]]), float(last[places[-1]]), values)
            )
    if (rate < 0).any():
        at = float(last[numpy.nonzero(rate < 0)[0][0]])
        findings.append(Finding("learning_rate_negative", "High", at, float(last[-1]), {"rate": float(rate.min())}))
    total = log.facts.total
    if total and rate[-1] == 0 and float(last[-1]) < 0.95 * total:
        at = float(last[numpy.nonzero(rate > 0)[0][-1]])
        findings.append(Finding("learning_rate_ended", "High", at, float(last[-1]), {"total": total}))
    return findings


def throughput_drop(log: TrainingLog, now: float) -> list[Finding]:
    """The last tenth of the rows against the best stretch before."""
    rate, last = log.curve.rate, log.curve.bins["last"]
    known = numpy.isfinite(rate) & (rate > 0)
    rate, last = rate[known], last[known]
    window = max(8, len(rate) // 10)
    if len(rate) < 3 * window:
        return []
    smooth = running_median(rate, window)[window - 1 :]
    best = int(smooth.argmax())
    factor = float(smooth[best] / smooth[-1])
    if factor < SLOW_MEDIUM:
        return []
    level: Level = "High" if factor >= SLOW_HIGH else "Medium"
    values: dict[str, float | str] = {"best": float(smooth[best]), "now": float(smooth[-1]), "factor": factor}
    return [Finding("slower", level, float(last[best + window - 1]), float(last[-1]), values)]


def stalled(log: TrainingLog, now: float) -> list[Finding]:
    """Nothing was written for long although the run is not at its end, or it ended with a traceback."""
    total = log.facts.total
    unfinished = total is None or log.last < 0.999 * total
    if log.broken_at is not None and unfinished:
        values: dict[str, float | str] = {"total": total or math.nan}
        return [Finding("broken_off", "High", log.broken_at, log.last, values)]
    silence = now - log.path.stat().st_mtime
    if total is None or not unfinished or silence < SILENT:
        return []
    values = {"minutes": silence / 60, "total": total}
    return [Finding("silent", "High" if silence >= 4 * SILENT else "Medium", log.last, log.last, values)]


def resumed(log: TrainingLog, now: float) -> list[Finding]:
    if not log.rewinds:
        return []
    lost = sum(start - end for start, end in log.rewinds)
    end = max(log.last, 1e-12)
    level: Level = "High" if lost >= 0.5 * end and len(log.rewinds) >= 3 else "Medium" if lost >= 0.05 * end else "Low"
    start, back = max(log.rewinds, key=lambda pair: pair[0] - pair[1])
    values: dict[str, float | str] = {"count": len(log.rewinds), "lost": lost, "most": start - back}
    return [Finding("resumed", level, back, start, values)]


RULES: dict[str, Callable[[TrainingLog, float], list[Finding]]] = {
    "loss_spikes": loss_spikes,
    "grad_norm_spikes": grad_norm_spikes,
    "nan_or_skipped_iterations": not_finite,
    "divergence": divergence,
    "loss_scale_collapse": loss_scale_collapse,
    "learning_rate_anomalies": learning_rate_anomalies,
    "throughput_drop": throughput_drop,
    "stalled_log": stalled,
    "resumed_from_earlier": resumed,
}


def other_risks(log: TrainingLog, now: float | None = None) -> dict[str, list[Finding]]:
    """Findings by risk, each of ``RULES``. ``now`` is the time of day in Unix seconds that silence is counted to."""
    moment = time.time() if now is None else now
    return {risk: rule(log, moment) for risk, rule in RULES.items()}
