"""One row per model: what it scores over the tasks that all of them share.

A task enters the score with one metric, the chance-corrected (value - chance) / (1 - chance): 0 is guessing, 1 is
perfect (the rescaling of the Gauntlet and DCLM "core" scores). A metric that is better when lower, or that leaves
[0, 1], is shown but not averaged, and so is a score of another version of the task than the one that was recorded last.
With ``scoring="minmax"`` (Data-Juicer's) a task's worst model of the board gets 0 and its best 1: any metric can enter,
also one that is better when lower, but a model's score then depends on who else is on the board.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recorder.baselines import Baseline
from recorder.files import write_atomic
from recorder.ledger import ScoreRow, Standing
from recorder.results import SHARE_ERROR
from recorder.statistics import Z95, with_spread
from recorder.untrusted import csv_cell

Which = Literal["latest", "best", "all"]
Scoring = Literal["chance", "minmax"]

ELSEWHERE = "baseline"  # the source of scores that another harness measured (``recorder.published_models``)


@dataclass(frozen=True)
class LeaderboardRow:
    """``metrics`` and ``stderrs`` by ``<task>.<metric>``. ``score`` is ``None`` when no task is shared.

    ``averaged`` names the metrics in the score, the same for all rows that have one. ``tokens`` counts billions.
    ``rank`` is 1 + the number of rows that are better beyond noise, so rows that cannot be told apart may share one;
    none where a model stands with all its iterations, for then it would be held against itself.
    """

    model: str
    iteration: int | None
    tokens: float | None
    score: float | None
    stderr: float | None
    rank: int | None
    metrics: dict[str, float]
    stderrs: dict[str, float]
    is_baseline: bool = False
    averaged: tuple[str, ...] = field(default=())


def is_share(value: float) -> bool:
    """Between 0 and 1, rounding errors aside."""
    return -SHARE_ERROR <= value <= 1.0 + SHARE_ERROR


def metric_key(row: ScoreRow) -> str:
    return f"{row.task}.{row.metric}"


def main_metrics(
    scores: Iterable[ScoreRow], baselines: Sequence[Baseline] = (), unfit: Iterable[str] = ()
) -> dict[str, str]:
    """The metric with which each task enters the score, as task -> ``<task>.<metric>``.

    Among the metrics that are better when higher and stay in [0, 1]: the one that most baselines have, then the one
    that comes first in the task's results. A task without such a metric is left out. Without scores of our own the
    baselines' tasks are taken, each with the metric that is named first. ``unfit`` metrics are known to be none, from
    scores that are not among these.
    """
    first: dict[tuple[str, str], int] = {}  # texts are put together once for each metric, not for each score
    out: set[tuple[str, str]] = set()
    for row in scores:
        of = row.task, row.metric
        if row.position < first.get(of, row.position + 1):
            first[of] = row.position
        if not row.higher_is_better or not -SHARE_ERROR <= row.value <= 1.0 + SHARE_ERROR:
            out.add(of)
    position = {(task, f"{task}.{metric}"): at for (task, metric), at in first.items()}
    unfit = {*unfit, *(f"{task}.{metric}" for task, metric in out), *(key for b in baselines for key in b.lower)}
    if not position:
        for baseline in baselines:
            for place, (key, value) in enumerate(baseline.values.items()):
                if is_share(value):
                    named = key.rpartition(".")[0], key
                    position[named] = min(position.get(named, place), place)
    chosen: dict[str, tuple[int, int, str]] = {}
    for (task, key), place in position.items():
        if key not in unfit:
            candidate = (-sum(key in baseline.values for baseline in baselines), place, key)
            chosen[task] = min(chosen.get(task, candidate), candidate)
    return {task: candidate[2] for task, candidate in sorted(chosen.items())}


def leaderboard(
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline] = (),
    *,
    which: Which = "latest",
    chosen: Mapping[str, int | Which] | None = None,
    scoring: Scoring = "chance",
    standing: Standing | None = None,
) -> list[LeaderboardRow]:
    """Rows in the order of their score, best first, those without a score last.

    ``which`` says what stands for a model: the ``latest`` iteration, the ``best`` one, or ``all``; ``chosen`` says it for
    single models, and may name an iteration. What is shared is decided by iterations that have every task of their
    model; an iteration that lacks a shared task is left out (unless it was named), for half an evaluation is not
    compared with a whole one. ``standing`` is what the ledger knows of the scores that are not among these.
    """
    scores = of_one_version(scores, standing)
    main = _metrics_for(scoring, scores, baselines, standing.unfit if standing is not None else ())
    models = _rows_of_scores(scores)
    published = [
        LeaderboardRow(b.name, None, b.tokens, None, None, None, dict(b.values), dict(b.stderrs), is_baseline=True)
        for b in baselines
    ]
    usable = _usable_for(scoring, [*(row for rows in models for row in rows), *published])
    shared = _shared([*(_most_complete(rows, main, usable)[-1] for rows in models), *published], main, usable)
    wanted = {rows[0].model: (chosen or {}).get(rows[0].model, which) for rows in models}
    eligible = [_eligible(rows, wanted[rows[0].model], shared, usable) for rows in models]
    candidates = [*(row for of_model in eligible for row in of_model), *published]
    scale = _scales(scoring, candidates, shared, scores, baselines)
    rows = [_scored(row, shared, scale, usable) for row in candidates]
    best = {model for model, choice in wanted.items() if choice == "best"}
    rows = [row for row in rows if row.is_baseline or row.model not in best] + _best_of_each(
        [row for row in rows if not row.is_baseline and row.model in best]
    )
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0.0), row.model, row.iteration or 0))
    return rows if which == "all" else _ranked(rows)


Usable = Callable[[LeaderboardRow], set[str]]  # the metrics of a row that may enter the score


def _eligible(
    rows: Sequence[LeaderboardRow], choice: int | Which, shared: Sequence[str], usable: Usable
) -> Sequence[LeaderboardRow]:
    """Of one model, by iteration: those that may stand for it."""
    if isinstance(choice, int):
        return [row for row in rows if row.iteration == choice]
    whole = [row for row in rows if set(shared) <= usable(row)] or rows
    return whole[-1:] if choice == "latest" else whole


def _metrics_for(
    scoring: Scoring, scores: Sequence[ScoreRow], baselines: Sequence[Baseline], unfit: Iterable[str]
) -> set[str]:
    main = main_metrics(scores, baselines, unfit)
    if scoring == "chance":
        return set(main.values())
    first: dict[str, tuple[int, str]] = {}
    for row in scores:
        candidate = (row.position, metric_key(row))
        first[row.task] = min(first.get(row.task, candidate), candidate)
    if not scores:
        for key in (key for baseline in baselines for key in baseline.lower):
            task = key.rpartition(".")[0]
            first[task] = min(first.get(task, (0, key)), (0, key))
    return {main.get(task, key) for task, (_, key) in first.items()} | set(main.values())


def _usable_for(scoring: Scoring, rows: Sequence[LeaderboardRow]) -> Usable:
    """Shares only; with min-max any metric, unless shares and percentages of it stand side by side."""
    if scoring == "chance":
        return _shares
    seen: dict[str, set[bool]] = defaultdict(set)
    for row in rows:
        for key, value in row.metrics.items():
            seen[key].add(is_share(value))
    mixed = {key for key, kinds in seen.items() if len(kinds) == 2}
    published = {key for row in rows if row.is_baseline for key in row.metrics}
    doubtful = mixed & published  # our own course may cross 1 (a loss does); a figure of 26 beside 0.26 is a percentage
    return lambda row: row.metrics.keys() - doubtful


def levels_of_chance(scores: Iterable[ScoreRow], baselines: Sequence[Baseline] = ()) -> dict[str, float]:
    """What guessing gives, by ``<task>.<metric>``, where anybody knows; our own scores know best."""
    found = {key: level for baseline in baselines for key, level in baseline.chance.items()}
    found |= {metric_key(row): row.chance for row in scores if row.chance is not None}
    return {key: level for key, level in found.items() if level < 1.0}


def above_chance(value: float, chance: float) -> float:
    """0 is guessing, 1 is perfect."""
    return (value - chance) / (1.0 - chance)


def _scales(
    scoring: Scoring,
    rows: Sequence[LeaderboardRow],
    shared: Sequence[str],
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
) -> dict[str, tuple[float, float]]:
    """By metric (what counts as 0, what counts as 1); with min-max none for a metric on which all are alike."""
    if scoring == "chance":
        chance = levels_of_chance(scores, baselines)
        return {key: (chance.get(key, 0.0), 1.0) for key in shared}
    lower = {metric_key(row) for row in scores if not row.higher_is_better}
    lower |= {key for baseline in baselines for key in baseline.lower}
    found = {}
    for key in shared:
        values = [row.metrics[key] for row in rows if key in row.metrics]
        low, high = min(values), max(values)
        if high > low:
            found[key] = (high, low) if key in lower else (low, high)
    return found


def of_one_version(scores: Sequence[ScoreRow], standing: Standing | None) -> list[ScoreRow]:
    """Of each task only the version recorded last, over all models: two versions are two measurements."""
    if standing is not None:
        newest = dict(standing.versions)
    else:
        recorded: dict[tuple[str, str], float] = {}
        for row in scores:
            if row.source != ELSEWHERE:
                recorded[row.task, row.task_version] = max(
                    row.recorded_at, recorded.get((row.task, row.task_version), row.recorded_at)
                )
        ordered = sorted(recorded, key=lambda place: (recorded[place], place[1]))
        newest = dict(ordered)
    return [row for row in scores if row.source == ELSEWHERE or row.task_version == newest[row.task]]


def _shares(row: LeaderboardRow) -> set[str]:
    """The metrics whose value is a share: a published 26 is a percentage that nobody may average with 0.26."""
    return {key for key, value in row.metrics.items() if is_share(value)}


def _rows_of_scores(scores: Iterable[ScoreRow]) -> list[list[LeaderboardRow]]:
    """Per model its iterations, ascending."""
    models: dict[str, dict[int, LeaderboardRow]] = defaultdict(dict)
    for score in scores:
        rows = models[score.model]
        row = rows.get(score.iteration)
        if row is None:
            row = LeaderboardRow(score.model, score.iteration, score.tokens, None, None, None, {}, {})
            rows[score.iteration] = row
        key = metric_key(score)
        row.metrics[key] = score.value
        stderr = with_spread(score.value, score.stderr, score.n)
        if stderr is not None:
            row.stderrs[key] = stderr
    return [[rows[iteration] for iteration in sorted(rows)] for _, rows in sorted(models.items())]


def _most_complete(rows: Sequence[LeaderboardRow], main: set[str], usable: Usable) -> list[LeaderboardRow]:
    most = max(len(main & usable(row)) for row in rows)
    return [row for row in rows if len(main & usable(row)) == most]


def _shared(rows: Sequence[LeaderboardRow], main: set[str], usable: Usable) -> tuple[str, ...]:
    """The metrics that all rows have; rows with the fewest are given up first while nothing is common to all."""
    having = sorted((main & usable(row) for row in rows if main & usable(row)), key=len)
    while having:
        common = set.intersection(*having)
        if common:
            return tuple(sorted(common))
        having = having[1:]
    return ()


def _scored(
    row: LeaderboardRow, shared: Sequence[str], scale: Mapping[str, tuple[float, float]], usable: Usable
) -> LeaderboardRow:
    keys = [key for key in shared if key in scale]
    if not keys or not set(shared) <= usable(row):
        return row
    value = math.fsum((row.metrics[key] - scale[key][0]) / (scale[key][1] - scale[key][0]) for key in keys) / len(keys)
    stderr = None
    if all(key in row.stderrs for key in keys):  # tasks are independent samples: variances add
        errors = (row.stderrs[key] / (scale[key][1] - scale[key][0]) for key in keys)
        stderr = math.sqrt(math.fsum(error**2 for error in errors)) / len(keys)
    return replace(row, score=value, stderr=stderr, averaged=tuple(keys))


def _best_of_each(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    best: dict[str, LeaderboardRow] = {}
    for row in rows:
        known = best.get(row.model)
        if known is None or (row.score or -math.inf) >= (known.score or -math.inf):
            best[row.model] = row
    return list(best.values())


def _ranked(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """1 + the number of rows above that are better by more than 1.96 standard errors of the difference.

    sqrt(SE_a^2 + SE_b^2) (Miller 2024, arXiv 2411.00640, equation 5); a figure without an error counts as exact. So
    the two best of three may share rank 1, and "rank 1" says that nobody was shown to be better.
    """
    ranked: list[LeaderboardRow] = []
    for row in rows:
        if row.score is not None:
            above = [one for one in ranked if (one.score or 0.0) - row.score > Z95 * _error_of_both(one, row)]
            row = replace(row, rank=1 + len(above))
        ranked.append(row)
    return ranked


def _error_of_both(one: LeaderboardRow, other: LeaderboardRow) -> float:
    return math.hypot(one.stderr or 0.0, other.stderr or 0.0)


def metric_columns(rows: Iterable[LeaderboardRow]) -> list[str]:
    """All metrics of the rows, sorted."""
    return sorted({key for row in rows for key in row.metrics})


def write_leaderboard_csv(path: Path | str, rows: Sequence[LeaderboardRow], metrics: Sequence[str]) -> None:
    """Write model, iteration, tokens, score, stderr, rank, then each metric and its ``_stderr``; empty when unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for key in metrics for name in (key, f"{key}_stderr")]
    writer.writerow(["model", "iteration", "tokens", "score", "stderr", "rank", *map(csv_cell, columns)])
    for row in rows:
        values = [value for key in metrics for value in (row.metrics.get(key), row.stderrs.get(key))]
        writer.writerow([csv_cell(row.model), row.iteration, row.tokens, row.score, row.stderr, row.rank, *values])
    write_atomic(path, text.getvalue())
