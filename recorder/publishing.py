"""When to publish to W&B: one process at a time, not before the next attempt is due, never for ever.

Failures are remembered in the ledger, so that the waits between attempts last over restarts and trouble that goes on
is told once. A key that was refused is not tried again for an hour, another key at once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from recorder import watchdog
from recorder.baselines import Baseline
from recorder.board import Board
from recorder.ledger import Ledger
from recorder.published_models import PublishedModel
from recorder.wandb_client import Trouble, WandbSettings, credentials_mark
from recorder.wandb_publisher import Outcome, Publisher

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 600.0
REFUSED_WAIT_SECONDS = 3600.0
LOCK_SECONDS = 600.0


class PublisherBusyError(RuntimeError):
    """Another process is publishing from this work directory and does not end."""


@contextmanager
def publisher_lock(work_dir: Path) -> Iterator[None]:
    """Held by the one process that publishes; waits for the one before. Raises ``PublisherBusyError``.

    W&B's client hands its standard input on to the service process that sends the rows. While the lock is held, that
    is the lock's file: after a SIGKILL the lock lasts until the service has gone too, so that two services never write
    to one run, and nobody reads half a run.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "publisher.lock").open("a") as stream:
        _wait_for(stream.fileno(), work_dir)
        standard_input = os.dup(0)
        os.dup2(stream.fileno(), 0)
        try:
            yield
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].teardown()  # ends a service that is still there, for it holds the lock too
            os.dup2(standard_input, 0)
            os.close(standard_input)


def _wait_for(descriptor: int, work_dir: Path) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise PublisherBusyError(
                    f"{work_dir}/publisher.lock: another publisher has it, and doesn't end"
                ) from None
            watchdog.alive()
            time.sleep(0.1)


@dataclass(frozen=True)
class Attempts:
    """What is remembered of attempts that failed. ``not_before`` is in Unix seconds."""

    failures: int = 0
    not_before: float = 0.0
    trouble: Trouble | None = None
    error: str = ""
    credentials: str = ""
    told: str = ""


class Patience:
    """The attempts at one place, in the ledger."""

    def __init__(self, ledger: Ledger, settings: WandbSettings):
        self._ledger = ledger
        self._settings = settings
        self._key = f"wandb-attempts:{settings.place}"
        self.before = Attempts(**json.loads(ledger.recall(self._key) or "{}"))

    def wait_seconds(self) -> float:
        """How long to wait still; 0 when another key is there than the one that was refused."""
        if self.before.trouble == "refused" and self.before.credentials != self._credentials():
            return 0.0
        return max(0.0, min(self.before.not_before - time.time(), REFUSED_WAIT_SECONDS))

    def begin(self) -> None:
        """Note an attempt as if it had failed, for this process may be killed in it."""
        self._write(replace(self.before, failures=self.before.failures + 1, not_before=self._next("other")))

    def end(self, outcome: Outcome, *, tell: bool = True) -> Outcome:
        """Note how it went; what is new in it is told in the log, once, unless the caller tells it."""
        if outcome.error is None:
            if tell and self.before.told:
                logger.warning("W&B takes rows again: %d published", outcome.published)
            self._write(Attempts())
            return outcome
        kind = outcome.trouble or "other"
        explained = _explain(kind, outcome.error, self._settings)
        if tell and self.before.told != kind:
            logger.warning("%s", explained)
        not_before = self._next(kind)
        credentials = self._credentials() if kind == "refused" else ""
        self._write(
            Attempts(
                self.before.failures + 1, not_before, kind, explained, credentials, kind if tell else self.before.told
            )
        )
        return replace(outcome, error=explained, retry_in=max(0.0, not_before - time.time()))

    def _next(self, kind: Trouble) -> float:
        longer = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 4**self.before.failures)
        return time.time() + (REFUSED_WAIT_SECONDS if kind == "refused" else longer)

    def _write(self, attempts: Attempts) -> None:
        if attempts != self.before or attempts.failures:
            self._ledger.remember(self._key, json.dumps(attempts.__dict__))

    def _credentials(self) -> str:
        salt = self._ledger.recall("wandb-salt")
        if salt is None:
            salt = secrets.token_hex(16)
            self._ledger.remember("wandb-salt", salt)
        return credentials_mark(self._settings, salt)


def _explain(kind: Trouble, error: str, settings: WandbSettings) -> str:
    where = settings.base_url or "W&B"
    if kind == "refused":
        return (
            f"{where} refuses the key (or there is none): set WANDB_API_KEY or run 'wandb login', then start again. "
            f"Results are kept and published then; the evaluation goes on. ({error})"
        )
    if kind == "away":
        return f"{where} does not answer; results are kept and published when it does. ({error})"
    return error


def publish(
    publisher: Publisher,
    models: Sequence[PublishedModel],
    baselines: Sequence[Baseline],
    board: Board,
    *,
    at_once: bool = False,
) -> Outcome:
    """Checkpoints, baselines, leaderboard, report. After a first failure the rest waits for the next time too.

    Does nothing before the next attempt is due, unless ``at_once``. Raises nothing.
    """
    if publisher.settings.mode == "disabled":
        return Outcome()
    patience = Patience(publisher.ledger, publisher.settings)
    wait = 0.0 if at_once or publisher.settings.mode == "offline" else patience.wait_seconds()
    if wait > 0:
        before = patience.before
        return Outcome(0, publisher.pending(), before.error or "the last attempt was cut short", before.trouble, wait)
    patience.begin()
    outcome = publisher.publish_checkpoints(baselines)
    if outcome.error is None:
        outcome += publisher.publish_models(models, baselines)
    if outcome.error is None:
        outcome += publisher.publish_leaderboard(board)
    if outcome.error is None:
        outcome += publisher.publish_report(board)
    return patience.end(outcome, tell=not at_once)
