"""What a run is given besides rows: the leaderboard's table, charts and artifact; result artifacts; alerts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from recorder.board import Board
from recorder.wandb_alerts import Alert
from recorder.wandb_client import ARTIFACT_SECONDS, Client
from recorder.wandb_figures import score_figure, task_figures
from recorder.wandb_lineage import TYPE, ResultsArtifact
from recorder.wandb_rows import curves, leaderboard_table

logger = logging.getLogger(__name__)


def log_board(client: Client, board: Board, run: Any) -> Callable[[], None]:
    """The leaderboard as a table, a bar chart, figures of the curves, and a table artifact, which is waited for."""
    import wandb

    names, cells = leaderboard_table(board)
    columns: list[str | int] = [*names]
    artifact = wandb.Artifact("leaderboard", type="leaderboard")
    artifact.add(wandb.Table(columns=columns, data=cells, allow_mixed_types=True), "leaderboard")
    handed = run.log_artifact(artifact)
    if client.online:
        handed.wait(timeout=ARTIFACT_SECONDS)
    media: dict[str, Any] = {
        "leaderboard": wandb.Table(columns=columns, data=cells, allow_mixed_types=True),
        "curves": wandb.Plotly(score_figure(board.rows, curves(board))),
    }
    scored = [[row.model, row.score] for row in board.rows if row.score is not None]
    if scored:
        bars = wandb.Table(columns=["model", "score"], data=scored)
        media["scores"] = wandb.plot.bar(bars, "model", "score", title="Score")
    for metric, figure in task_figures(board).items():
        media[f"curves/{metric}"] = wandb.Plotly(figure)
    run.log(media)
    return lambda: None


def log_alerts(run: Any, alerts: Sequence[Alert]) -> None:
    for alert in alerts:
        run.alert(title=alert.title, text=alert.text, level=alert.level)


def log_artifacts(
    client: Client, run: Any, artifacts: Sequence[ResultsArtifact]
) -> tuple[list[ResultsArtifact], list[str]]:
    """Log each; those that the server has confirmed (offline: all), and the aliases of the others."""
    import wandb

    logged, failed = [], []
    for one in artifacts:
        try:
            if client.online and one.source is not None:
                _use(run, one.source)
            artifact = wandb.Artifact(one.name, type=TYPE, metadata=one.metadata)
            for file in one.files:  # immutable: sent from where they are, no copy is kept
                artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
            handed = run.log_artifact(artifact, aliases=[one.alias])
            if client.online:
                handed.wait(timeout=ARTIFACT_SECONDS)
        except Exception as error:  # the rows don't depend on it; it is tried again
            logger.warning("W&B: the results of %s were not logged: %s: %s", one.alias, type(error).__name__, error)
            failed.append(one.alias)
        else:
            logged.append(one)
    return logged, failed


def _use(run: Any, source: str) -> None:
    """Megatron may not have logged this save, or the artifact was deleted: then there is no lineage to show."""
    try:
        run.use_artifact(source)
    except Exception as error:
        logger.info("W&B: no artifact %s: %s", source, error)
