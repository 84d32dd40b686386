"""Rebuild the views of one work directory: leaderboard.csv, report.html, messages, Weights & Biases.

``python -m recorder.refresh --work-dir W --settings SETTINGS.json``, where the settings are
``{"project", "title", "baselines": path or null, "wandb": {"mode", "project", "entity", "base_url"}}``. A lock makes it
one publisher at a time. Where messages go is in the environment (``recorder.messages.channel``). The last line on stdout
is JSON: ``{"published": n, "pending": m, "error": text or null, "messages_sent": n, "messages_pending": m}``;
``pending`` counts what was due and could not be sent. Exit code 0 unless the leaderboard or the report failed: a W&B
that is away is not a failure of the evaluation, the outbox keeps what it has not taken.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from recorder.baselines import Baseline, load_baselines
from recorder.board import Board
from recorder.leaderboard import write_leaderboard_csv
from recorder.ledger import Ledger
from recorder.messages.channel import Told, from_environment
from recorder.messages.events import telling
from recorder.messages.outbox import Delivered
from recorder.published_models import PublishedModel, together
from recorder.report.facts import Facts
from recorder.wandb_publisher import Outcome, Publisher, WandbSettings

logger = logging.getLogger(__name__)

VIEWS = ("leaderboard.csv", "report.html")
MODES = ("offline", "online", "disabled")


@dataclass(frozen=True)
class Settings:
    project: str
    title: str
    baselines: Path | None
    wandb: WandbSettings


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the file and the key."""


def read_settings(path: Path) -> Settings:
    """Raises ``SettingsError``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wandb = content.get("wandb") or {}
        mode = wandb.get("mode", "offline")
        if mode not in MODES:
            raise SettingsError(f"{path}: wandb.mode: expected one of {', '.join(MODES)}, found {mode!r}")
        project = str(content["project"])
        return Settings(
            project=project,
            title=str(content.get("title") or project),
            baselines=Path(content["baselines"]) if content.get("baselines") else None,
            wandb=WandbSettings(mode, wandb.get("project") or project, wandb.get("entity"), wandb.get("base_url")),
        )
    except KeyError as error:
        raise SettingsError(f"{path}: the key {error} is missing") from error
    except (OSError, ValueError, AttributeError) as error:
        raise error if isinstance(error, SettingsError) else SettingsError(f"{path}: {error}") from error


@contextmanager
def publisher_lock(work_dir: Path) -> Iterator[None]:
    """Held by the one process that rebuilds the views and publishes; waits for the one before.

    W&B's client hands its standard input on to the service process that writes the runs. While the lock is held, that
    is the lock's file: after a SIGKILL the lock lasts until the service has gone too, and nobody reads half a run.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "publisher.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        standard_input = os.dup(0)
        os.dup2(stream.fileno(), 0)
        try:
            yield
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].teardown()  # ends a service that is still there, for it holds the lock too
            os.dup2(standard_input, 0)
            os.close(standard_input)


def refresh(work_dir: Path, settings: Settings) -> Outcome:
    """``refresh_and_tell`` with nobody to tell."""
    return refresh_and_tell(work_dir, settings, Told())[0]


def refresh_and_tell(work_dir: Path, settings: Settings, told: Told) -> tuple[Outcome, Delivered]:
    """Rebuild all views. Raises what the leaderboard or the report raises; what a service says is in the outcomes."""
    with publisher_lock(work_dir):
        ledger = Ledger(work_dir / "ledger.sqlite", repair=False)
        try:
            from_file = load_baselines(settings.baselines) if settings.baselines else []
            models = together(ledger, from_file)
            facts = Facts(ledger, [model.newest() for model in models], models)
            rebuild_files(facts, work_dir, settings.title)
            news = telling(ledger, told, settings.title, facts.scores, facts.verdict, facts.worth)
            with news as delivered:
                outcome = publish(Publisher(ledger, work_dir, settings.wandb), models, facts.baselines, facts.board)
            return outcome, delivered[0] if delivered else Delivered()
        finally:
            ledger.close()


def rebuild_files(facts: Facts, work_dir: Path, title: str) -> None:
    """Write leaderboard.csv and report.html."""
    from recorder.report.page import write_report

    for left in (left for view in VIEWS for left in work_dir.glob(f".{view}.*.tmp")):
        left.unlink(missing_ok=True)  # of one that was killed: the lock says that nobody is writing now
    write_leaderboard_csv(work_dir / "leaderboard.csv", facts.board.rows, facts.board.columns)
    write_report(facts, work_dir / "report.html", title=title)


def publish(
    publisher: Publisher, models: Sequence[PublishedModel], baselines: Sequence[Baseline], board: Board
) -> Outcome:
    """Checkpoints, baselines, leaderboard. After a first failure the rest waits for the next time too."""
    if publisher.settings.mode == "disabled":
        return Outcome()
    outcome = publisher.publish_checkpoints(baselines)
    if outcome.error is None:
        outcome += publisher.publish_models(models, baselines)
    if outcome.error is None:
        outcome += publisher.publish_leaderboard(board)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recorder.refresh", description="Rebuild the views of a work_dir.")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answer: dict[str, Any]
    told = from_environment()  # before anything is started that would inherit it
    try:
        outcome, delivered = refresh_and_tell(options.work_dir.absolute(), read_settings(options.settings), told)
        answer = asdict(outcome) | {"messages_sent": delivered.sent, "messages_pending": delivered.pending}
        answer["error"] = outcome.error or delivered.error
        code = 0
    except Exception as error:
        logger.exception("the views could not be rebuilt")
        code, answer = 1, {"published": 0, "pending": 0, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
