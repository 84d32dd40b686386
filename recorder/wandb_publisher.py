"""Brings W&B to show what the ledger holds: nothing lost, nothing twice, whatever died on the way.

For each run: look at what is there, send what is lacking in one short run, finish it, read it back. Only what could be
read back counts as published, for ``finish()`` returns normally also when the server refused the rows. Who calls holds
the publisher's lock (``recorder.publishing.publisher_lock``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from recorder import watchdog
from recorder.baselines import Baseline
from recorder.board import Board
from recorder.costs import checkpoint_costs
from recorder.ledger import Ledger, ScoreRow
from recorder.published_models import PublishedModel
from recorder.wandb_alerts import Alert, alerts_of
from recorder.wandb_client import Client, Trouble, WandbSettings, trouble
from recorder.wandb_delivery import Content, Delivery, NotConfirmed
from recorder.wandb_lineage import ResultsArtifact, results_artifacts
from recorder.wandb_media import log_alerts, log_artifacts, log_board
from recorder.wandb_rows import (
    TAGS,
    Row,
    Values,
    content_hash,
    curves,
    history_rows,
    leaderboard_run_id,
    leaderboard_table,
    own_columns,
    rows_of_published,
    run_id,
    summary_of,
    versions_of,
)

logger = logging.getLogger(__name__)

BOARD = "board"  # the summary key that says which board a leaderboard's run shows


@dataclass(frozen=True)
class Outcome:
    """``published`` and ``pending`` count rows (and the leaderboard); ``error`` is the first that came up.

    ``retry_in``: seconds until another attempt makes sense, where that is known.
    """

    published: int = 0
    pending: int = 0
    error: str | None = None
    trouble: Trouble | None = None
    retry_in: float | None = None

    def __add__(self, other: Outcome) -> Outcome:
        first = self if self.error else other
        waits = [wait for wait in (self.retry_in, other.retry_in) if wait is not None]
        counts = self.published + other.published, self.pending + other.pending
        return Outcome(*counts, first.error, first.trouble, max(waits, default=None))


class Publisher:
    """Publishes one ledger. No method raises: what fails stays pending, with its error.

    ``verify`` looks at every run even when nothing is due, and sends again what has been lost there.
    """

    def __init__(self, ledger: Ledger, work_dir: Path, settings: WandbSettings, *, verify: bool = False):
        self.ledger = ledger
        self.work_dir = Path(work_dir)
        self.settings = settings
        self.verify = verify
        self.client = Client(settings, self.work_dir)
        self.delivery = Delivery(ledger, self.client)
        self.sink = f"wandb:{settings.place}"

    def publish_checkpoints(self, baselines: Sequence[Baseline] = ()) -> Outcome:
        """Send a row for every checkpoint whose tasks are through, oldest iteration first, its results and alerts."""
        if self.settings.mode == "disabled":
            return Outcome()
        rows, scores = self._rows(baselines)
        saves, tasks = self.ledger.checkpoints(), self.ledger.tasks()
        due = {model: sum(bool(row.outbox_ids) for row in mine) for model, mine in rows.items()}
        total = Outcome()
        for model in sorted(rows.keys() | {save.model for save in saves}):
            mine, count = rows.get(model, []), due.get(model, 0)
            alerts = self._untold(alerts_of(model, self.ledger, saves, tasks, scores, baselines))
            artifacts = self._unlogged(results_artifacts(self.work_dir, model, saves))
            if not count and not self.client.online:  # a directory without rows is no use
                alerts, artifacts = [], []
            if not (count or alerts or artifacts or (self.verify and mine)):
                continue
            what = f"{count} rows of {model}" if count else model
            result = self._attempt(what, partial(self._send, model, mine, scores, artifacts, alerts))
            size = max(count, result.pending)
            total += Outcome(result.published and count, result.pending and size, result.error, result.trouble)
            if result.error:
                return total + Outcome(pending=sum(n for other, n in due.items() if other > model))
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
            content = Content(
                run_id(self.settings.project, model.name, "baseline"),
                model.name,
                () if summary_only else rows,
                summary_of(rows),
                tags=(*TAGS, "baseline"),
                config={"model": model.name, "source": model.source, "token_num": model.rows[-1].tokens},
            )
            if summary_only:
                total += self._attempt(f"summary of {model.name}", partial(self.delivery.deliver, content, look=False))
            else:
                total += self._once(f"baseline {model.name}", content, [_plain(rows), model.source])
        return total

    def update_summaries(self, baselines: Sequence[Baseline] = ()) -> Outcome:
        """Write only the summary of each model's run; no history row."""
        rows, scores = self._rows(baselines)
        total = Outcome()
        for model, mine in sorted(rows.items()):
            base = run_id(self.settings.project, model)
            names = own_columns(model, scores, self._columns(base))
            summary = summary_of([row.renamed(names) for row in mine])
            content = Content(base, model, (), summary, config={"model": model})
            total += self._attempt(f"summary of {model}", partial(self.delivery.deliver, content, look=False))
        return total

    def publish_leaderboard(self, board: Board) -> Outcome:
        """Send the leaderboard's run (table, bar chart, figure, table artifact) when it is another than last time."""
        if not board.rows:
            return Outcome()
        shown = [leaderboard_table(board), curves(board)]
        content = Content(
            leaderboard_run_id(self.settings.project),
            "leaderboard",
            summary={"models": len({row.model for row in board.rows}), BOARD: content_hash(shown)},
            job_type="leaderboard",
            tags=("leaderboard",),
            extras=partial(log_board, self.client, board),
        )
        return self._once("leaderboard", content, shown)

    def publish_report(self, board: Board) -> Outcome:
        """Save the W&B Report of the project, online, when it is to show other panels than last time.

        What is wrong with it is told in the log and is no error: rows and leaderboard don't depend on it.
        """
        if not board.rows or self.settings.mode != "online":
            return Outcome()
        from recorder.wandb_report import save_report, wanted_report

        watchdog.alive()
        key = f"wandb-report:{self.settings.place}"
        known = json.loads(self.ledger.recall(key) or "{}")
        wanted = wanted_report(board)
        digest = content_hash(wanted)
        if known.get("digest") == digest and not self.verify:
            return Outcome()
        try:
            identity, url = save_report(self.client, wanted, known.get("id"))
        except Exception as error:  # a preview API of another package: it may change under us
            logger.warning("W&B: the report could not be saved: %s: %s", type(error).__name__, error)
            return Outcome()
        logger.info("W&B: the report is at %s", url)
        self.ledger.remember(key, json.dumps({"digest": digest, "id": identity, "url": url}))
        return Outcome()

    # What is due

    def pending(self) -> int:
        """How many checkpoints have rows that are not published yet."""
        return sum(bool(row.outbox_ids) for rows in self._rows(())[0].values() for row in rows)

    def _rows(self, baselines: Sequence[Baseline]) -> tuple[dict[str, list[Row]], list[ScoreRow]]:
        scores, tasks, saves = self.ledger.scores(), self.ledger.tasks(), self.ledger.checkpoints()
        pending = self.ledger.outbox_pending(self.sink)
        return history_rows(pending, saves, tasks, scores, baselines, self._costs()), scores

    def _costs(self) -> dict[tuple[str, int, str], dict[str, float]]:
        return {(one.model, one.iteration, one.fingerprint): one.figures() for one in checkpoint_costs(self.ledger)}

    def _untold(self, alerts: Sequence[Alert]) -> list[Alert]:
        return [alert for alert in alerts if self.ledger.recall(self._key("alert", alert.key)) is None]

    def _unlogged(self, artifacts: Sequence[ResultsArtifact]) -> list[ResultsArtifact]:
        return [one for one in artifacts if self.ledger.recall(self._key("artifact", one.key)) != one.digest]

    def _key(self, what: str, of: str) -> str:
        return f"wandb-{what}:{self.settings.place}:{of}"

    def _columns(self, base: str) -> dict[str, str]:
        """Task -> the version that was sent first, to which the column ``<task>.<metric>`` belongs."""
        return dict(json.loads(self.ledger.recall(self._key("columns", base)) or "{}"))

    # Sending

    def _attempt(self, what: str, send: Callable[[], object]) -> Outcome:
        """``published`` is 0 when ``send`` answers that nothing was to be sent."""
        if self.settings.mode == "disabled":
            return Outcome()
        watchdog.alive()
        try:
            sent = send() is not False
        except Exception as error:  # wandb raises many kinds; a view that is away must not stop an evaluation
            kind = trouble(error)
            logger.debug("W&B: %s is left pending", what, exc_info=error)
            return Outcome(pending=1, error=f"W&B: {what}: {type(error).__name__}: {error}", trouble=kind)
        return Outcome(published=int(sent))

    def _once(self, what: str, content: Content, identifying: Any) -> Outcome:
        key, digest = self._key("content", content.base), content_hash(identifying)
        if self.ledger.recall(key) == digest and not self.verify:
            return Outcome()
        content.settle = partial(self.ledger.remember, key, digest)
        return self._attempt(what, partial(self.delivery.deliver, content))

    def _send(
        self,
        model: str,
        rows: Sequence[Row],
        scores: Sequence[ScoreRow],
        artifacts: Sequence[ResultsArtifact],
        alerts: Sequence[Alert],
    ) -> bool:
        base = run_id(self.settings.project, model)
        columns = self._columns(base)
        names = own_columns(model, scores, columns)
        own = [row.renamed(names) for row in rows]
        late: list[str] = []

        def extras(run: Any) -> Callable[[], None]:
            log_alerts(run, alerts)
            logged, failed = log_artifacts(self.client, run, artifacts)
            late.extend(failed)
            return partial(self._note, logged, alerts)

        content = Content(base, model, own, summary_of(own), config={"model": model})

        def settle() -> None:
            self.ledger.remember(self._key("columns", base), json.dumps(versions_of(model, scores) | columns))
            if self.client.online:
                self._need_not_go_offline(model, {row.iteration for row in rows if row.outbox_ids})
            self.ledger.outbox_done(self.sink, [entry for row in rows for entry in row.outbox_ids])

        content.extras, content.settle = extras if artifacts or alerts else None, settle
        sent = self.delivery.deliver(content)
        if late:
            raise NotConfirmed(f"the rows are published, but not the results of {', '.join(late)}")
        return sent

    def _need_not_go_offline(self, model: str, iterations: set[int]) -> None:
        """What the server has is not written for ``wandb sync``, should the mode be offline next time."""
        sink = f"wandb:{replace(self.settings, mode='offline').place}"
        entries = [e.id for e in self.ledger.outbox_pending(sink) if e.model == model and e.iteration in iterations]
        self.ledger.outbox_done(sink, entries)

    def _note(self, logged: Sequence[ResultsArtifact], alerts: Sequence[Alert]) -> None:
        for artifact in logged:
            self.ledger.remember(self._key("artifact", artifact.key), artifact.digest)
        for alert in alerts:
            self.ledger.remember(self._key("alert", alert.key), alert.title)


def _plain(rows: Sequence[Row]) -> list[Values]:
    return [row.values for row in rows]
