"""One run brought to show what it should: look at what is there, send what is lacking, finish, read it back.

Only what could be read back counts, for the client's ``finish()`` returns normally also when the server refused the rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recorder.ledger import Ledger
from recorder.wandb_client import Client, RunState, mark_synced, trouble
from recorder.wandb_rows import AXES, TAGS, Row, Values, same_number

logger = logging.getLogger(__name__)

SERVER_SHOWS_AFTER = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds before each look; a row needs a moment to show up
DELETIONS = 20  # so many deleted runs of one model are stepped over


class NotConfirmed(RuntimeError):
    """The client ended without a complaint, but what was sent cannot be read back."""


@dataclass
class Content:
    """What one run is to show. ``extras`` logs what is no row and returns what is to be done when the run is finished;
    ``settle`` notes in the ledger that the run was read back."""

    base: str
    name: str
    rows: Sequence[Row] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    job_type: str = "checkpoint-eval"
    tags: Sequence[str] = TAGS
    config: Mapping[str, Any] = field(default_factory=dict)
    extras: Callable[[Any], Callable[[], None]] | None = None
    settle: Callable[[], None] = lambda: None


class Delivery:
    """To one place. What is known of it is in the ledger: the id of each run, and whether a send was cut short."""

    def __init__(self, ledger: Ledger, client: Client):
        self.ledger = ledger
        self.client = client

    def _key(self, what: str, of: str) -> str:
        return f"wandb-{what}:{self.client.settings.place}:{of}"

    def deliver(self, content: Content, look: bool = True) -> bool:
        """Send what is lacking and read it back; whether anything was. Raises what the client raises, ``NotConfirmed``.

        Without ``look`` nothing is read before: for a summary that is written in any case.
        """
        confirmed = self._key("run", content.base)
        recorded = self.ledger.recall(confirmed)
        identity, state = found = self._find(content.base, recorded, look)
        for _ in range(DELETIONS):
            try:
                state = self._send_lacking(identity, content, state)
                break
            except Exception as error:
                if trouble(error) != "deleted":
                    raise
                identity = _next_id(content.base, identity)
                logger.warning("W&B: the run of %s was deleted there: it is made again as %s", content.name, identity)
                state = self.client.state(identity) or RunState(over=False)
        self.ledger.remember(confirmed, identity)
        content.settle()
        if self.client.online:
            with suppress(OSError):
                mark_synced(self.client.work_dir, content.base, state if content.rows else None)
        else:
            self.ledger.remember(self._key("doubt", content.base), "")
        return (identity, state) != found

    def _find(self, base: str, recorded: str | None, look: bool) -> tuple[str, RunState | None]:
        """The run's id and what it holds, ``None`` when the ledger knows that: offline, unless a send was cut short.

        A run that was on the server and is not any more was deleted. W&B gives its id to nobody again, so there is a
        new one, and the whole history is sent to that.
        """
        identity = recorded or base
        if not self.client.online:
            if not look or self.ledger.recall(self._key("doubt", base)) == "":
                return identity, None
            return identity, self.client.state(identity) or RunState(over=False)
        state = self.client.state(identity)
        if state is None and recorded is not None:
            identity = _next_id(base, identity)
            logger.warning("W&B: run %s is not there any more: what it held is sent again, as %s", recorded, identity)
            state = self.client.state(identity)
        return identity, state or RunState(over=False)

    def _send_lacking(self, identity: str, content: Content, state: RunState | None) -> RunState | None:
        """Returns the state that was read back, or ``state`` when nothing was to be sent."""
        is_board = content.job_type == "leaderboard"
        rows = content.rows if self.client.online else [row.only_due() for row in content.rows if row.due]
        lacking = [values for row in rows if (values := row.lacking({} if state is None else state.values))]
        shown = state is not None and state.over and _stands(state, content.summary)
        if shown and not lacking and (is_board or content.extras is None):
            return state
        if not self.client.online:
            self.ledger.remember(self._key("doubt", content.base), "rows are under way")
        done: Callable[[], None] | None = None
        with self.client.run(identity, content.name, content.job_type, content.tags, content.config) as run:
            directory = Path(run.dir).parent
            if not is_board:
                for axis in AXES:
                    run.define_metric(axis, hidden=True, summary="none")
                run.define_metric("*", step_metric="iteration", step_sync=False, summary="none")
            for values in lacking:
                run.log(values)
            if content.extras:
                done = content.extras(run)
            run.summary.update(dict(content.summary))
        if done:  # they have answers of their own; the rows are looked at below
            done()
        return self._confirm(identity, content, lacking, directory)

    def _confirm(self, identity: str, content: Content, sent: Sequence[Values], directory: Path) -> RunState:
        """What can be read back, from the server or offline from the run's own file. Raises ``NotConfirmed``."""
        if not self.client.online:
            state = self.client.local_state(identity, directory)
            rows = [Row(int(values["iteration"]), values, frozenset(values)) for values in sent]
            if state is None or not state.over or any(row.lacking(state.values) for row in rows):
                raise NotConfirmed(f"run {identity}: the rows cannot be read back from {directory}")
            return state
        for wait in SERVER_SHOWS_AFTER:
            time.sleep(wait)
            state = self.client.state(identity)
            if state is None:
                continue
            if not any(row.lacking(state.values) for row in content.rows) and _stands(state, content.summary):
                return state
        raise NotConfirmed(f"run {identity}: what was sent cannot be read back from the server")


def _stands(state: RunState, summary: Mapping[str, Any]) -> bool:
    return all(_equal(state.summary.get(key), value) for key, value in summary.items())


def _equal(shown: Any, wanted: Any) -> bool:
    if isinstance(shown, int | float) and isinstance(wanted, int | float):
        return same_number(shown, wanted)
    return bool(shown == wanted)


def _next_id(base: str, identity: str) -> str:
    number = int(identity.removeprefix(base).removeprefix("-") or 1)
    return f"{base}-{number + 1}"
