"""Rebuild the views of one work directory: leaderboard.csv, report.html, messages; and publish to Weights & Biases.

``python -m recorder.refresh --work-dir W --settings SETTINGS.json [--views | --publish]``, where the settings are
``{"project", "title", "baselines": path or null, "wandb": {"mode", "project", "entity", "base_url"}}``. The daemon runs
``--views`` and ``--publish`` as two processes, so that a W&B that hangs keeps nothing else waiting; each has a lock that
makes it one at a time. Where messages go is in the environment (``recorder.messages.channel``). The last line on stdout
is JSON: ``{"published": n, "pending": m, "error": text or null, "retry_in": seconds or null, "messages_sent": n,
"messages_pending": m}``; ``pending`` counts what was due and could not be sent. Exit code 0 unless the leaderboard or
the report failed: a W&B that is away is not a failure of the evaluation, the outbox keeps what it has not taken.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from recorder import watchdog
from recorder.baselines import load_baselines
from recorder.leaderboard import write_leaderboard_csv
from recorder.ledger import Ledger, LedgerError
from recorder.messages.channel import Told, from_environment
from recorder.messages.events import telling
from recorder.messages.outbox import Delivered
from recorder.published_models import together
from recorder.publishing import publish, publisher_lock
from recorder.report.facts import Facts
from recorder.untrusted import PrintableRecord
from recorder.wandb_client import WandbSettings
from recorder.wandb_publisher import Outcome, Publisher

logger = logging.getLogger(__name__)

LEDGER = "ledger.sqlite"
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
def views_lock(work_dir: Path) -> Iterator[None]:
    """Held by the one process that writes leaderboard.csv and report.html; waits for the one before."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "views.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def refresh(work_dir: Path, settings: Settings) -> Outcome:
    """Rebuild the views, telling nobody, then publish. Raises as ``rebuild_views`` does."""
    rebuild_views(work_dir, settings, Told())
    return publish_to_wandb(work_dir / LEDGER, settings, at_once=True)


def rebuild_views(work_dir: Path, settings: Settings, told: Told) -> Delivered:
    """Write leaderboard.csv and report.html, send messages. Raises what the leaderboard or the report raises."""
    with views_lock(work_dir), _facts(work_dir / LEDGER, settings.baselines) as facts:
        rebuild_files(facts, work_dir, settings.title)
        with telling(facts.ledger, told, settings.title, facts.scores, facts.verdict, facts.worth) as delivered:
            pass
        return delivered[0] if delivered else Delivered()


def publish_to_wandb(ledger: Path, settings: Settings, *, at_once: bool = False, verify: bool = False) -> Outcome:
    """Publish what is not yet. What W&B says is in the outcome; raises what concerns ledger and baselines.

    ``at_once`` doesn't wait for the next attempt to be due; ``verify`` also looks at what was published before.
    """
    if settings.wandb.mode == "disabled":
        return Outcome()
    with publisher_lock(ledger.parent), _facts(ledger, settings.baselines) as facts:
        publisher = Publisher(facts.ledger, ledger.parent, settings.wandb, verify=verify)
        return publish(publisher, facts.published_models, facts.baselines, facts.board, at_once=at_once)


def sync(ledger: Path, settings: Settings) -> int:
    """Publish online all that ``ledger`` holds and W&B doesn't show, and say so; the exit status.

    It may be repeated: what is there is not sent again. Raises ``LedgerError`` when there is no ledger.
    """
    if not ledger.exists():
        raise LedgerError(f"{ledger}: there is no ledger; run evaluator.py first, or name it with 'ledger:'")
    settings = replace(settings, wandb=replace(settings.wandb, mode="online"))
    outcome = publish_to_wandb(ledger, settings, at_once=True, verify=True)
    where = settings.wandb.base_url or "wandb.ai"
    print(f"W&B: {where}, project {settings.wandb.project}: sent {outcome.published}, pending {outcome.pending}")
    if outcome.error:
        print(outcome.error, file=sys.stderr)
    return 1 if outcome.pending else 0


@contextmanager
def _facts(path: Path, baselines: Path | None) -> Iterator[Facts]:
    with closing(Ledger(path, repair=False)) as ledger:
        models = together(ledger, load_baselines(baselines) if baselines else [])
        yield Facts(ledger, [model.newest() for model in models], models)


def rebuild_files(facts: Facts, work_dir: Path, title: str) -> None:
    """Write leaderboard.csv and report.html."""
    from recorder.report.page import write_report

    for left in (left for view in VIEWS for left in work_dir.glob(f".{view}.*.tmp")):
        left.unlink(missing_ok=True)  # of one that was killed: the lock says that nobody is writing now
    write_leaderboard_csv(work_dir / "leaderboard.csv", facts.board.rows, facts.board.columns)
    write_report(facts, work_dir / "report.html", title=title)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recorder.refresh", description="Rebuild the views of a work_dir.")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--views", action="store_true", help="leaderboard.csv, report.html and messages only")
    part.add_argument("--publish", action="store_true", help="Weights & Biases only")
    options = parser.parse_args(arguments)
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    told = from_environment()  # before anything is started that would inherit it
    outcome, delivered, code, error = Outcome(), Delivered(), 0, None
    try:
        work_dir, settings = options.work_dir.absolute(), read_settings(options.settings)
        if not options.publish:
            delivered = rebuild_views(work_dir, settings, told)
        if not options.views:
            with watchdog.watched():
                outcome = publish_to_wandb(work_dir / LEDGER, settings)
    except Exception as problem:
        logger.exception("the views could not be rebuilt")
        code, error = 1, f"{type(problem).__name__}: {problem}"
    answer: dict[str, Any] = {"published": outcome.published, "pending": outcome.pending, "retry_in": outcome.retry_in}
    answer |= {"messages_sent": delivered.sent, "messages_pending": delivered.pending}
    print(json.dumps(answer | {"error": error or outcome.error or delivered.error}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
