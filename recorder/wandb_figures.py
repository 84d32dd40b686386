"""The plotly figures of the leaderboard's run: curves with their error bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recorder.board import Board
from recorder.leaderboard import LeaderboardRow
from recorder.statistics import Z95

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
MOST_TASKS = 12
Curves = Mapping[str, Sequence[tuple[int, float, float]]]  # model -> (iteration, value, stderr)


def score_figure(rows: Sequence[LeaderboardRow], points: Curves) -> Any:  # plotly.graph_objects.Figure
    """The score of each model along its iterations; baselines as horizontal lines."""
    lines = {row.model: row.score for row in rows if row.is_baseline and row.score is not None}
    return _figure("score", points, lines)


def task_figures(board: Board) -> dict[str, Any]:
    """Such a figure for each metric that is in the score, at most ``MOST_TASKS``."""
    averaged = next((row.averaged for row in board.rows if row.averaged), ())
    along = [row for row in board.over_training() if not row.is_baseline and row.iteration is not None]
    figures = {}
    for metric in averaged[:MOST_TASKS]:
        points: dict[str, list[tuple[int, float, float]]] = {}
        for row in along:
            if metric in row.metrics:
                point = (row.iteration or 0, row.metrics[metric], row.stderrs.get(metric, 0.0))
                points.setdefault(row.model, []).append(point)
        lines = {row.model: row.metrics[metric] for row in board.rows if row.is_baseline and metric in row.metrics}
        figures[metric] = _figure(metric, {model: sorted(curve) for model, curve in sorted(points.items())}, lines)
    return figures


def _figure(name: str, points: Curves, lines: Mapping[str, float]) -> Any:
    """Each curve with a band of its 95 % interval (normal approximation)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, (model, curve) in enumerate(points.items()):
        colour = COLOURS[place % len(COLOURS)]
        x = [iteration for iteration, _, _ in curve]
        upper = [value + Z95 * stderr for _, value, stderr in curve]
        lower = [value - Z95 * stderr for _, value, stderr in curve]
        band = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_scatter(
            x=x + x[::-1], y=upper + lower[::-1], name=f"{model}, 95 %", legendgroup=model, showlegend=False, **band
        )
        values = [value for _, value, _ in curve]
        figure.add_scatter(x=x, y=values, name=model, legendgroup=model, mode="lines+markers", line={"color": colour})
    for model, value in lines.items():
        figure.add_hline(y=value, line_dash="dot", annotation_text=model)
    figure.update_layout(title=f"{name} by iteration", xaxis_title="iteration", yaxis_title=name)
    return figure
