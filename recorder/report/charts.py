"""What the curves are drawn from: per metric each model's course with its intervals, levels to compare with, what is
expected next. Figures are drawn by the page itself (``templates/charts.js``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recorder import words
from recorder.leaderboard import LeaderboardRow, is_share, metric_key
from recorder.ledger import ScoreRow
from recorder.report.facts import Facts
from recorder.report.markup import task_of
from recorder.statistics import Z95, score_interval
from recorder.trend import Outlook


def all_charts(facts: Facts) -> list[dict[str, Any]]:
    """The average first, then each task's main metric, then the other metrics."""
    charts = [chart for chart in [_average(facts)] if chart is not None]
    outlooks = {model: facts.worth(model) for model in facts.models}
    for key in sorted(facts.by_metric, key=lambda key: (key not in facts.shown_first, key)):
        of_metric = facts.by_metric[key]
        rows = [row for of_model in of_metric.values() for row in of_model]
        newest = max(rows, key=lambda row: row.iteration)
        ahead = {
            model: next((one for one in worth.tasks if one.metric == key), None)
            for model, worth in outlooks.items()
            if worth is not None
        }
        charts.append(
            {
                "title": key,
                "task": task_of(key),
                "note": "" if rows[0].higher_is_better else "lower is better",
                "unit": rows[0].metric,
                "share": all(is_share(row.value) for row in rows),
                "main": key in facts.shown_first,
                "wide": False,
                "chance": next((row.chance for row in rows if row.chance is not None), None),
                "summary": _summary(key, newest.value, newest.iteration),
                "series": [_series(facts, model, of_metric[model], ahead.get(model)) for model in sorted(of_metric)],
                "baselines": [
                    {"name": b.name, "value": b.values[key]}
                    for b in facts.baselines
                    if key in b.values and b.name not in of_metric
                ],
            }
        )
    return charts


def _summary(title: str, value: float, iteration: int | None) -> str:
    return f"{title}: curve over training, {words.score(value)} at iteration {iteration or 0:,}"


def _series(facts: Facts, model: str, rows: Sequence[ScoreRow], outlook: Outlook | None) -> dict[str, Any]:
    intervals = [score_interval(row.value, row.stderr, row.n) for row in rows]
    return {
        "model": facts.models.index(model),
        "iteration": [row.iteration for row in rows],
        "tokens": [_short(row.tokens) for row in rows],
        "value": [_short(row.value) for row in rows],
        "low": [None if interval is None else _short(interval[0], 4) for interval in intervals],
        "high": [None if interval is None else _short(interval[1], 4) for interval in intervals],
        "n": _once([row.n for row in rows]),
        "ahead": _ahead(
            rows[-1].iteration, rows[-1].tokens, outlook, 1.0 if metric_key(rows[-1]) in facts.shares else math.inf
        ),
    }


def _ahead(iteration: int, tokens: float | None, outlook: Outlook | None, top: float) -> dict[str, list[Any]] | None:
    """The fitted course from the newest checkpoint on, on both x-axes (tokens and iterations keep their ratio)."""
    if outlook is None or not outlook.curve or outlook.now <= 0:
        return None
    points = [point for point in outlook.curve if point[0] >= outlook.now]
    points = points[:: max(1, len(points) // 10)] + points[-1:]
    if len(points) < 2 or not points[0][2] <= outlook.value <= points[0][3]:
        return None  # a fit that has left the newest score behind says nothing about the next ones
    share = [point[0] / outlook.now for point in points]
    return {
        "iteration": [_short(one * iteration) for one in share],
        "tokens": [None if tokens is None else _short(one * tokens) for one in share],
        "value": [_short(point[1], 4) for point in points],
        "low": [_short(point[2], 4) for point in points],
        "high": [_short(min(point[3], top), 4) for point in points],
    }


def _average(facts: Facts) -> dict[str, Any] | None:
    """The leaderboard's score over training; only worth a chart when it averages at least two tasks."""
    scored = sorted((row for row in facts.every if row.score is not None), key=lambda row: row.iteration or 0)
    own = [row for row in scored if not row.is_baseline]
    if not own or len(own[0].averaged) < 2:
        return None
    series = []
    for model in facts.models:
        rows = [row for row in own if row.model == model]
        if rows:
            series.append(_average_series(facts, model, rows))
    return {
        "title": f"Average of {len(own[0].averaged)} tasks",
        "task": "",
        "note": "corrected for chance: 0 is guessing, 1 is perfect",
        "unit": "score",
        "share": True,
        "main": True,
        "wide": True,
        "chance": None,
        "summary": _summary("Average", own[-1].score or 0.0, own[-1].iteration),
        "series": series,
        "baselines": [
            {"name": row.model, "value": _short(row.score or 0.0)}
            for row in scored
            if row.is_baseline and row.model not in facts.models
        ],
    }


def _average_series(facts: Facts, model: str, rows: Sequence[LeaderboardRow]) -> dict[str, Any]:
    values = [row.score or 0.0 for row in rows]
    worth = facts.worth(model)
    outlook = worth.average if worth is not None else None
    if outlook is not None and not math.isclose(outlook.value, values[-1], abs_tol=1e-9):
        outlook = None  # of other tasks: those that this model has by itself
    errors = [None if row.stderr is None else Z95 * row.stderr for row in rows]
    return {
        "model": facts.models.index(model),
        "iteration": [row.iteration for row in rows],
        "tokens": [_short(row.tokens) for row in rows],
        "value": [_short(value) for value in values],
        "low": [None if e is None else _short(v - e) for v, e in zip(values, errors, strict=True)],
        "high": [None if e is None else _short(v + e) for v, e in zip(values, errors, strict=True)],
        "n": None,
        "ahead": _ahead(rows[-1].iteration or 0, rows[-1].tokens, outlook, 1.0),
    }


def _once(values: Sequence[int]) -> int | list[int]:
    """A number that is the same everywhere, once."""
    return values[0] if len(set(values)) == 1 else list(values)


def _short(value: float | None, digits: int = 6) -> float | None:
    """Six significant digits, of an interval four: what a picture can show, in half the bytes."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None
