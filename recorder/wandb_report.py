"""The W&B Report of a project: curves of every metric by iteration, the leaderboard, the cost. One, kept up to date.

Made with ``wandb-workspaces``, whose interface W&B calls a preview: nothing else depends on it.
"""

from __future__ import annotations

from typing import Any

from recorder.board import Board
from recorder.wandb_client import Client

MOST_METRICS = 40
WIDTH, HEIGHT = 8, 6  # of a panel, on a grid that is 24 wide


def wanted_report(board: Board) -> dict[str, Any]:
    """What the report is to show, as plain values. The runs' newest figures come from W&B when it is looked at."""
    averaged = next((row.averaged for row in board.rows if row.averaged), ())
    rest = [key for key in board.columns if key not in averaged]
    return {"metrics": ["average", *averaged, *rest][:MOST_METRICS], "models": sorted({r.model for r in board.rows})}


def save_report(client: Client, wanted: dict[str, Any], identity: str | None) -> tuple[str, str]:
    """Write the report, over the one with ``identity`` where there is one; its id and address.

    Raises what wandb-workspaces raises, ``ImportError`` where it is not installed.
    """
    import wandb_workspaces.reports.v2 as wr

    with _addressed(client):
        project, entity = client.settings.project, client.entity()
        report = wr.Report(
            project=project,
            entity=entity,
            title=f"{project}: evaluation of every checkpoint",
            description="Written by autoeval; curves and tables follow the runs.",
            width="fluid",
            blocks=_blocks(wr, entity, project, wanted),
        )
        if identity is not None:
            report.id = identity
        report.save()
        return str(report.id), str(report.url)


def _blocks(wr: Any, entity: str, project: str, wanted: dict[str, Any]) -> list[Any]:
    def runs(name: str, job_type: str) -> Any:
        return wr.Runset(entity=entity, project=project, name=name, filters=f"JobType = '{job_type}'")

    curves = [
        wr.LinePlot(title=key, x="iteration", y=[key], smoothing_factor=0, layout=_place(wr, index))
        for index, key in enumerate(wanted["metrics"])
    ]
    board = [
        wr.WeavePanelSummaryTable(table_name="leaderboard", layout=wr.Layout(x=0, y=0, w=24, h=10)),
        wr.MediaBrowser(title="score by iteration", media_keys=["curves"], layout=wr.Layout(x=0, y=10, w=24, h=10)),
    ]
    return [
        wr.TableOfContents(),
        wr.H1("Leaderboard"),
        wr.PanelGrid(runsets=[runs("leaderboard", "leaderboard")], panels=board),
        wr.H1("Every metric by iteration"),
        wr.P("Baselines are points of their own. A key ending in _stderr, beside each metric, is its standard error."),
        wr.PanelGrid(runsets=[runs("models and baselines", "checkpoint-eval")], panels=curves),
    ]


def _place(wr: Any, index: int) -> Any:
    row, column = divmod(index, 24 // WIDTH)
    return wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)


class _addressed:
    """Within the block the package, which takes no address of a server, talks to that of ``client``."""

    def __init__(self, client: Client):
        self._client = client

    def __enter__(self) -> None:
        from wandb_workspaces.reports.v2 import interface

        self._module, self._before = interface, interface._get_api
        interface._get_api = self._client.api

    def __exit__(self, *_: object) -> None:
        self._module._get_api = self._before
