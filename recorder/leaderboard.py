"""One row per model: what it scores over the tasks that all of them share.

A task enters the score with one metric, the chance-corrected (value - chance) / (1 - chance): 0 is guessing, 1 is
perfect (the rescaling of the Gauntlet and DCLM "core" scores). A metric that is better when lower, or that leaves
[0, 1], is shown but not averaged, and so is a score of another version of the task than the one that was recorded last.
Data-Juicer's min-max over the cohort is not used: it makes a model's score depend on
who else is on the board.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recorder.baselines import Baseline
from recorder.files import write_atomic
from recorder.ledger import ScoreRow
from recorder.statistics import with_spread

Which = Literal["latest", "best", "all"]


@dataclass(frozen=True)
class LeaderboardRow:
    """``metrics`` and ``stderrs`` by ``<task>.<metric>``. ``score`` is ``None`` when no task is shared.

    ``averaged`` names the metrics in the score, the same for all rows that have one. ``tokens`` counts billions.
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
    return -1e-9 <= value <= 1.0 + 1e-9


def metric_key(row: ScoreRow) -> str:
    return f"{row.task}.{row.metric}"


def main_metrics(scores: Iterable[ScoreRow], baselines: Sequence[Baseline] = ()) -> dict[str, str]:
    """The metric with which each task enters the score, as task -> ``<task>.<metric>``.

    Among the metrics that are better when higher and stay in [0, 1]: the one that most baselines have, then the one
    that comes first in the task's results. A task without such a metric is left out. Without scores of our own the
    baselines' tasks are taken, each with the metric that is named first.
    """
    position: dict[tuple[str, str], int] = {}
    unfit: set[str] = set()
    for row in scores:
        key = metric_key(row)
        position[row.task, key] = min(position.get((row.task, key), row.position), row.position)
        if not row.higher_is_better or not is_share(row.value):
            unfit.add(key)
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
    scores: Sequence[ScoreRow], baselines: Sequence[Baseline] = (), *, which: Which = "latest"
) -> list[LeaderboardRow]:
    """Rows in the order of their score, best first, those without a score last.

    ``which`` says what stands for a model: the ``latest`` iteration, the ``best`` one, or ``all``. What is shared is
    decided by iterations that have every task of their model; an iteration that lacks a shared task is left out, for
    half an evaluation is not compared with a whole one.
    """
    scores = _of_one_version(scores)
    main = set(main_metrics(scores, baselines).values())
    chance = {metric_key(row): row.chance for row in scores if row.chance is not None and row.chance < 1.0}
    models = _rows_of_scores(scores)
    published = [
        LeaderboardRow(b.name, None, b.tokens, None, None, None, dict(b.values), dict(b.stderrs), is_baseline=True)
        for b in baselines
    ]
    shared = _shared([*(_most_complete(rows, main)[-1] for rows in models), *published], main)
    eligible = [[row for row in rows if set(shared) <= _shares(row)] or rows for rows in models]
    if which == "latest":
        eligible = [rows[-1:] for rows in eligible]
    rows = [_scored(row, shared, chance) for row in [*(row for of_model in eligible for row in of_model), *published]]
    if which == "best":
        rows = _best_of_each(rows)
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0.0), row.model, row.iteration or 0))
    return _ranked(rows)


def _of_one_version(scores: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Of each task only the version recorded last, over all models: two versions are two measurements."""
    newest = {row.task: row.task_version for row in sorted(scores, key=lambda row: row.recorded_at)}
    return [row for row in scores if row.task_version == newest[row.task]]


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


def _most_complete(rows: Sequence[LeaderboardRow], main: set[str]) -> list[LeaderboardRow]:
    most = max(len(main & _shares(row)) for row in rows)
    return [row for row in rows if len(main & _shares(row)) == most]


def _shared(rows: Sequence[LeaderboardRow], main: set[str]) -> tuple[str, ...]:
    """The metrics that all rows have; rows with the fewest are given up first while nothing is common to all."""
    having = sorted((main & _shares(row) for row in rows if main & _shares(row)), key=len)
    while having:
        common = set.intersection(*having)
        if common:
            return tuple(sorted(common))
        having = having[1:]
    return ()


def _scored(row: LeaderboardRow, shared: Sequence[str], chance: Mapping[str, float]) -> LeaderboardRow:
    if not shared or not set(shared) <= _shares(row):
        return row
    scale = {key: 1.0 - chance.get(key, 0.0) for key in shared}
    value = math.fsum((row.metrics[key] - chance.get(key, 0.0)) / scale[key] for key in shared) / len(shared)
    stderr = None
    if all(key in row.stderrs for key in shared):  # tasks are independent samples: variances add
        stderr = math.sqrt(math.fsum((row.stderrs[key] / scale[key]) ** 2 for key in shared)) / len(shared)
    return replace(row, score=value, stderr=stderr, averaged=tuple(shared))


def _best_of_each(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    best: dict[tuple[str, bool], LeaderboardRow] = {}
    for row in rows:
        known = best.get((row.model, row.is_baseline))
        if known is None or (row.score or -math.inf) >= (known.score or -math.inf):
            best[row.model, row.is_baseline] = row
    return list(best.values())


def _ranked(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Competition ranking: equal scores share a rank, the next one counts them (1, 2, 2, 4)."""
    ranked: list[LeaderboardRow] = []
    for place, row in enumerate(rows, start=1):
        if row.score is not None:
            tied = bool(ranked) and ranked[-1].score == row.score
            row = replace(row, rank=ranked[-1].rank if tied else place)
        ranked.append(row)
    return ranked


def metric_columns(rows: Iterable[LeaderboardRow]) -> list[str]:
    """All metrics of the rows, sorted."""
    return sorted({key for row in rows for key in row.metrics})


def write_leaderboard_csv(path: Path | str, rows: Sequence[LeaderboardRow], metrics: Sequence[str]) -> None:
    """Write model, iteration, tokens, score, stderr, rank, then each metric and its ``_stderr``; empty when unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for key in metrics for name in (key, f"{key}_stderr")]
    writer.writerow(["model", "iteration", "tokens", "score", "stderr", "rank", *columns])
    for row in rows:
        values = [value for key in metrics for value in (row.metrics.get(key), row.stderrs.get(key))]
        writer.writerow([row.model, row.iteration, row.tokens, row.score, row.stderr, row.rank, *values])
    write_atomic(path, text.getvalue())
