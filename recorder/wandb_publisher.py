"""Sends the ledger's outbox to Weights & Biases with the real client, so that nothing is lost and nothing comes twice.

What shapes it (seen with wandb 0.31.0): a kill loses up to the last 15 seconds of rows, so what is due has a short run
(init with ``resume="allow"``, log, finish), which offline is a directory of its own under ``<work_dir>/wandb``;
``finish()`` also returns normally when the server refused the rows, so they are read back before they count as sent;
``step=`` drops a late row, so the iteration is a value and the x-axis. ``finish()`` returns before the client's service
has written the file and let go of the run's id, so the service is ended after each run (``wandb.teardown``). Whoever
calls holds the publisher's lock (``recorder.refresh.publisher_lock``).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from recorder.baselines import Baseline
from recorder.board import Board
from recorder.ledger import Ledger, ScoreRow
from recorder.published_models import PublishedModel
from recorder.wandb_file import WandbFileError, read_wandb_file, wandb_files
from recorder.wandb_rows import (
    AXES,
    TAGS,
    RowToSend,
    Values,
    content_hash,
    curves,
    in_own_columns,
    leaderboard_run_id,
    leaderboard_table,
    rows_of_published,
    rows_to_send,
    run_id,
    summary_of,
    versions_of,
)

logger = logging.getLogger(__name__)

SINK = "wandb"
INIT_SECONDS = 30.0
FINISH_SECONDS = 300.0  # without a limit a server that goes away now would keep the report from being rebuilt
SERVER_SHOWS_AFTER = (0.0, 1.0, 2.0, 4.0)  # seconds before each look; a row needs a moment to show up

Mode = Literal["offline", "online", "disabled"]


@dataclass(frozen=True)
class WandbSettings:
    mode: Mode
    project: str
    entity: str | None = None
    base_url: str | None = None


@dataclass(frozen=True)
class Outcome:
    """``published`` and ``pending`` count rows (and the leaderboard); ``error`` is the first that came up."""

    published: int = 0
    pending: int = 0
    error: str | None = None

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.published + other.published, self.pending + other.pending, self.error or other.error)


class NotConfirmed(RuntimeError):
    """The client ended without a complaint, but what was sent cannot be read back."""


class Publisher:
    """Publishes one ledger below ``work_dir/wandb``. No method raises: what fails stays pending, with its error."""

    def __init__(self, ledger: Ledger, work_dir: Path, settings: WandbSettings):
        self.ledger = ledger
        self.work_dir = Path(work_dir)
        self.settings = settings
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # the client's own telemetry
        os.environ["WANDB_SILENT"] = "true"

    def publish_checkpoints(self, baselines: Sequence[Baseline] = ()) -> Outcome:
        """Send a row for every checkpoint whose tasks are through, oldest iteration first."""
        scores, tasks, saves = self.ledger.scores(), self.ledger.tasks(), self.ledger.checkpoints()
        rows = rows_to_send(self.ledger.outbox_pending(SINK), saves, tasks, scores, baselines)
        if self.settings.mode == "disabled":
            return Outcome()
        total = Outcome()
        for model in sorted({row.model for row in rows}):
            mine = [row for row in rows if row.model == model]
            result = self._attempt(f"{len(mine)} rows of {model}", partial(self._send, model, mine, scores, baselines))
            total += Outcome(result.published * len(mine), result.pending * len(mine), result.error)
            if result.error:
                return total + Outcome(pending=len(rows) - total.published - total.pending)
        return total

    def publish_models(
        self, models: Sequence[PublishedModel], baselines: Sequence[Baseline] = (), *, summary_only: bool = False
    ) -> Outcome:
        """Send each baseline as a run of its own; again only when its content is another than last time.

        ``summary_only`` writes the runs' summaries and no history row.
        """
        scores = self.ledger.scores()
        total = Outcome()
        for model in models:
            rows = rows_of_published(model, scores, baselines)
            what, identity = f"baseline {model.name}", run_id(self.settings.project, model.name, "baseline")
            if summary_only:
                total += self._attempt(what, partial(self._send_model, model, rows, summary_only=True))
            else:
                total += self._once(what, identity, [rows, model.source], partial(self._send_model, model, rows))
        return total

    def update_summaries(self, baselines: Sequence[Baseline] = ()) -> Outcome:
        """Write only the summary of each model's run; no history row."""
        scores = self.ledger.scores()
        total = Outcome()
        for model in sorted({score.model for score in scores}):
            identity = run_id(self.settings.project, model)
            summary = self._summary(model, scores, baselines, {s.iteration for s in scores if s.model == model})
            total += self._attempt(f"summary of {model}", partial(self._run, identity, model, [], summary))
        return total

    def publish_leaderboard(self, board: Board) -> Outcome:
        """Send the leaderboard's run (table, bar chart, figure, table artifact) when it is another than last time."""
        if not board.rows:
            return Outcome()
        content = [leaderboard_table(board), curves(board)]
        identity = leaderboard_run_id(self.settings.project)
        return self._once("leaderboard", identity, content, partial(self._send_leaderboard, board))

    # Sending

    def _attempt(self, what: str, send: Callable[[], None]) -> Outcome:
        if self.settings.mode == "disabled":
            return Outcome()
        try:
            send()
        except Exception as error:  # wandb raises many kinds; a view that is away must not stop an evaluation
            logger.warning("W&B: %s is left pending: %s: %s", what, type(error).__name__, error)
            return Outcome(pending=1, error=f"W&B: {what}: {type(error).__name__}: {error}")
        return Outcome(published=1)

    def _once(self, what: str, identity: str, content: Any, send: Callable[[], None]) -> Outcome:
        key = f"wandb-content:{self._place()}:{identity}"
        digest = content_hash(content)
        if self.ledger.recall(key) == digest:
            return Outcome()
        result = self._attempt(what, send)
        if result.published:
            self.ledger.remember(key, digest)
        return result

    def _place(self) -> str:
        s = self.settings
        return f"{s.mode}/{s.base_url or ''}/{s.entity or ''}/{s.project}"

    def _send(
        self, model: str, rows: Sequence[RowToSend], scores: Sequence[ScoreRow], baselines: Sequence[Baseline]
    ) -> None:
        identity = run_id(self.settings.project, model)
        with self._under_way(identity) as known_to_ledger:
            columns = self._columns(identity)
            values = [in_own_columns(row.values, model, scores, columns) for row in rows if row.values]
            if values and not known_to_ledger:
                known = self._known(identity)
                values = [lacking for row in values if (lacking := _missing(known, row))]
            if values:
                unsent = {e.iteration for e in self.ledger.outbox_pending(SINK) if e.model == model}
                sent = {s.iteration for s in scores if s.model == model} - unsent | {row.iteration for row in rows}
                self._run(identity, model, values, self._summary(model, scores, baselines, sent))
            self.ledger.remember(self._columns_key(identity), json.dumps(versions_of(model, scores) | columns))
            self.ledger.outbox_done(SINK, [entry for row in rows for entry in row.outbox_ids])

    def _summary(
        self, model: str, scores: Sequence[ScoreRow], baselines: Sequence[Baseline], up_to: set[int]
    ) -> Values:
        values = summary_of(model, self.ledger.tasks(), scores, baselines, up_to)
        return in_own_columns(values, model, scores, self._columns(run_id(self.settings.project, model)))

    def _columns_key(self, identity: str) -> str:
        return f"wandb-columns:{self._place()}:{identity}"

    def _columns(self, identity: str) -> dict[str, str]:
        """Task -> the version that was sent first, to which the column ``<task>.<metric>`` belongs."""
        return dict(json.loads(self.ledger.recall(self._columns_key(identity)) or "{}"))

    def _send_model(self, model: PublishedModel, rows: Sequence[Values], *, summary_only: bool = False) -> None:
        identity = run_id(self.settings.project, model.name, "baseline")
        known = {} if summary_only else self._known(identity)  # always: it is sent rarely, the ledger may be a new one
        missing = [] if summary_only else [lacking for row in rows if (lacking := _missing(known, row))]
        config = {"source": model.source, "token_num": model.rows[-1].tokens}
        self._run(identity, model.name, missing, rows[-1], tags=(*TAGS, "baseline"), config=config)

    def _run(
        self,
        identity: str,
        model: str,
        rows: Sequence[Values],
        summary: Mapping[str, float],
        tags: Sequence[str] = TAGS,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        with self._open(identity, model, "checkpoint-eval", tags, {"model": model, **(config or {})}) as run:
            directory = Path(run.dir).parent
            for axis in AXES:
                run.define_metric(axis, hidden=True, summary="none")
            run.define_metric("*", step_metric="iteration", step_sync=False, summary="none")
            for row in rows:
                run.log(dict(row))
            run.summary.update(dict(summary))
        self._confirm(identity, rows, directory)

    def _send_leaderboard(self, board: Board) -> None:
        import wandb

        from recorder.wandb_figures import score_figure

        names, cells = leaderboard_table(board)
        columns: list[str | int] = [*names]
        scored = [[row.model, row.score] for row in board.rows if row.score is not None]
        identity = leaderboard_run_id(self.settings.project)
        with self._open(identity, "leaderboard", "leaderboard", ("leaderboard",), {}) as run:
            table = wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
            figure = wandb.Plotly(score_figure(board.rows, curves(board)))
            media: dict[str, Any] = {"leaderboard": table, "curves": figure}
            if scored:
                bars = wandb.Table(columns=["model", "score"], data=scored)
                media["scores"] = wandb.plot.bar(bars, "model", "score", title="Score")
            run.log(media)
            artifact = wandb.Artifact("leaderboard", type="leaderboard")
            artifact.add(wandb.Table(columns=columns, data=cells, allow_mixed_types=True), "leaderboard")
            run.log_artifact(artifact)
            run.summary["models"] = len({row.model for row in board.rows})
            directory = Path(run.dir).parent
        self._confirm(identity, [], directory)

    @contextmanager
    def _open(
        self, identity: str, name: str, job_type: str, tags: Sequence[str], config: dict[str, Any]
    ) -> Iterator[Any]:
        import wandb

        self.work_dir.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"base_url": self.settings.base_url} if self.settings.base_url else {}
        try:
            run = wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                dir=self.work_dir,
                id=identity,
                name=name,
                group=name,
                job_type=job_type,
                tags=list(tags),
                config=config,
                mode="online" if self.settings.mode == "online" else "offline",
                resume="allow",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    save_code=False,
                    disable_job_creation=True,
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                    **options,
                ),
            )
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish()
        finally:
            wandb.teardown()

    # What is there already

    def _doubt(self, identity: str) -> str:
        return f"wandb-doubt:{self._place()}:{identity}"

    @contextmanager
    def _under_way(self, identity: str) -> Iterator[bool]:
        """Notes that rows are under way; yields whether the ledger knows all that the run holds.

        It doesn't after a kill or a failure, nor does a ledger that never sent to the run (made anew, perhaps): then
        each row is looked up first.
        """
        known = self.ledger.recall(self._doubt(identity)) == ""
        self.ledger.remember(self._doubt(identity), "rows are under way")
        yield known
        self.ledger.remember(self._doubt(identity), "")

    def _known(self, identity: str) -> dict[tuple[int, str], float]:
        """The last value of each (iteration, metric) of a run: offline of its directories, online of the server."""
        rows = self._server_rows(identity) if self.settings.mode == "online" else self._local_rows(identity)
        return _by_metric([rows])

    def _local_rows(self, identity: str) -> list[dict[str, Any]]:
        """Of the offline runs only: what an online run left here was, or will be, sent to the server by itself."""
        rows: list[dict[str, Any]] = []
        for file in wandb_files(self.work_dir / "wandb", identity):
            if not file.parent.name.startswith("offline-"):
                continue
            try:
                run = read_wandb_file(file)
            except WandbFileError as error:
                logger.warning("W&B: %s; taken as if it held nothing", error)
                continue
            rows += run.history if run.run_id == identity else []
        return rows

    def _server_rows(self, identity: str) -> list[dict[str, Any]]:
        import wandb

        overrides = {"base_url": self.settings.base_url} if self.settings.base_url else {}
        api = wandb.Api(overrides=overrides, timeout=int(INIT_SECONDS))
        entity = self.settings.entity or api.default_entity
        api.flush()
        try:
            return list(api.run(f"{entity}/{self.settings.project}/{identity}").scan_history())
        except (ValueError, wandb.errors.CommError) as error:
            if "could not find" in str(error).lower() or "not found" in str(error).lower():
                return []
            raise

    def _confirm(self, identity: str, rows: Sequence[Values], directory: Path) -> None:
        """Raises ``NotConfirmed`` unless what was sent can be read back from the server, or offline from its file."""
        if self.settings.mode == "online":
            if not rows or self._server_shows(identity, rows):
                return
            raise NotConfirmed(f"run {identity}: the rows cannot be read back from the server")
        runs = [read_wandb_file(file) for file in directory.glob("*.wandb")]
        known = _by_metric(run.history for run in runs)
        if not any(run.finished for run in runs) or not all(_holds(known, row) for row in rows):
            raise NotConfirmed(f"run {identity}: the rows cannot be read back from {directory}")

    def _server_shows(self, identity: str, rows: Sequence[Values]) -> bool:
        for wait in SERVER_SHOWS_AFTER:
            time.sleep(wait)
            known = self._known(identity)
            if all(_holds(known, row) for row in rows):
                return True
        return False


def _by_metric(histories: Iterable[Iterable[Mapping[str, Any]]]) -> dict[tuple[int, str], float]:
    """The last value of each (iteration, metric)."""
    return {
        (int(row["iteration"]), key): value
        for history in histories
        for row in history
        if row.get("iteration") is not None
        for key, value in row.items()
        if isinstance(value, int | float)
    }


def _missing(known: Mapping[tuple[int, str], float], row: Values) -> Values:
    """The part of a row that is not known, with its axes; empty when all is."""
    iteration = int(row["iteration"])
    unknown = {key for key, value in row.items() if known.get((iteration, key)) != value}
    return {key: value for key, value in row.items() if key in unknown or key in AXES} if unknown else {}


def _holds(known: Mapping[tuple[int, str], float], row: Values) -> bool:
    return all(known.get((int(row["iteration"]), key)) == value for key, value in row.items())
