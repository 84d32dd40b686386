"""The plotly figure of the leaderboard's run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recorder.leaderboard import LeaderboardRow


def score_figure(
    rows: Sequence[LeaderboardRow], points: Mapping[str, Sequence[tuple[int, float, float]]]
) -> Any:  # plotly.graph_objects.Figure
    """The score of each model along its iterations with bars of one standard error; baselines as horizontal lines."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for model, curve in points.items():
        figure.add_scatter(
            name=model,
            x=[iteration for iteration, _, _ in curve],
            y=[score for _, score, _ in curve],
            error_y={"type": "data", "array": [stderr for _, _, stderr in curve]},
            mode="lines+markers",
        )
    for row in rows:
        if row.is_baseline and row.score is not None:
            figure.add_hline(y=row.score, line_dash="dot", annotation_text=row.model)
    figure.update_layout(title="Score by iteration", xaxis_title="iteration", yaxis_title="score")
    return figure
