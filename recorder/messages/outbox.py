"""What is to be told, in the ledger's table ``messages``: queued once by its key, sent once, kept over restarts.

A message is marked ``sending`` before its POST and ``sent`` after the answer. A process that is killed in between leaves
it ``sending``: nobody knows whether it arrived, so it is dropped rather than told twice.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recorder.ledger_schema import open_database
from recorder.messages.channel import Channel
from recorder.messages.delivery import deliver, pace_of
from recorder.messages.message import Message

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # of one round over all channels; what is left then waits for the next
STALE_SECONDS = 24 * 3600.0  # news that could not be sent for so long is none


class Queued(NamedTuple):
    id: int
    key: str
    message: Message
    queued_at: float


class Delivered(NamedTuple):
    """``pending`` counts what is worth another attempt soon. ``error`` says why the first of them was not taken."""

    sent: int = 0
    pending: int = 0
    error: str | None = None


class MessageOutbox:
    """Only the process that holds the publisher's lock uses it: then what is ``sending`` is of one that was killed."""

    def __init__(self, ledger: Path):
        self._connection = open_database(ledger)
        with self._writing() as connection:
            lost = connection.execute(
                "UPDATE messages SET state = 'dropped', note = 'a process was killed while it sent it' "
                "WHERE state = 'sending' RETURNING channel, key"
            ).fetchall()
        for channel, key in lost:
            logger.warning("%s: the message %s may have arrived or not: not sent again", channel, key)

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def knows(self, channel: str, key: str) -> bool:
        query = "SELECT 1 FROM messages WHERE channel = ? AND key = ?"
        return self._connection.execute(query, (channel, key)).fetchone() is not None

    def put(self, channel: str, key: str, message: Message, *, drop: bool = False) -> None:
        """Queue a message, once a key; ``drop``: only remember that it need not be told."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO messages (channel, key, content, state, queued_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (channel, key, message.to_json(), "dropped" if drop else "pending", time.time()),
            )

    def pending(self, channel: str) -> list[Queued]:
        """In the order in which they were queued."""
        rows = self._connection.execute(
            "SELECT id, key, content, queued_at FROM messages WHERE channel = ? AND state = 'pending' ORDER BY id",
            (channel,),
        )
        return [Queued(row[0], row[1], Message.from_json(row[2]), row[3]) for row in rows]

    def mark(self, entry: int, state: str, note: str | None = None) -> None:
        with self._writing() as connection:
            query = "UPDATE messages SET state = ?, note = ?, tried_at = ? WHERE id = ?"
            connection.execute(query, (state, note, time.time(), entry))

    def tried_lately(self, channel: str) -> list[float]:
        """Unix times of the last minute's messages: the service counts those of earlier processes too."""
        rows = self._connection.execute(
            "SELECT tried_at FROM messages WHERE channel = ? AND tried_at > ?", (channel, time.time() - 60)
        )
        return [row[0] for row in rows]


def send_pending(
    outbox: MessageOutbox, channels: Sequence[Channel], *, patience: float = PATIENCE_SECONDS
) -> Delivered:
    """Send what is queued, oldest first, each channel for itself: one that is away delays no other for long."""
    sent, pending, error = 0, 0, None
    for channel in channels:
        begun, pace = time.monotonic(), pace_of(channel, outbox.tried_lately(channel.name))
        waiting = outbox.pending(channel.name)
        for place, queued in enumerate(waiting):
            if time.time() - queued.queued_at > STALE_SECONDS:
                outbox.mark(queued.id, "dropped", "could not be sent for a day")
                continue
            if time.monotonic() - begun + pace.due_in() > patience / len(channels):
                pending += len(waiting) - place
                break
            outbox.mark(queued.id, "sending")
            answer = deliver(channel, queued.message, pace)
            if answer.verdict == "taken":
                outbox.mark(queued.id, "sent")
                sent += 1
                continue
            problem = f"{channel.name} did not take the message {queued.key}: {answer.why}"
            logger.warning("%s", problem)
            if answer.verdict == "refused":
                outbox.mark(queued.id, "refused", answer.why)
                continue
            outbox.mark(queued.id, "pending", answer.why)
            error = error or problem
            if answer.verdict == "later":  # closed: trying again soon would not help, a person must act
                pending += len(waiting) - place
            break
    return Delivered(sent, pending, error)
