"""A webhook of one's own: the message as JSON, by POST.

    {"event": "verdict", "tone": "good", "project": …, "model": …, "iteration": 2000, "title": …, "text": …,
     "facts": {label: value}, "lines": […], "sent_at": Unix seconds}

Any 2xx takes it; 408, 425, 429 (``Retry-After`` is kept) and 5xx are tried again. The header ``Idempotency-Key`` names
the message, so that a receiver can tell a second delivery after a lost answer.
"""

from __future__ import annotations

from typing import Any

from recorder.messages.answer import GONE, Answer, Reply
from recorder.messages.channel import Channel
from recorder.messages.message import Message

PER_SECOND, PER_MINUTE = 5, 100


def payload(message: Message, channel: Channel, now: float) -> dict[str, Any]:
    """The body of the POST. ``now``: Unix seconds."""
    message = message.shortened()
    return {
        "event": message.kind,
        "tone": message.tone,
        "project": message.project,
        "model": message.model,
        "iteration": message.iteration,
        "title": message.title,
        "text": message.text,
        "facts": dict(message.facts),
        "lines": list(message.lines),
        "sent_at": now,
    }


def judge(reply: Reply) -> Answer:
    if 200 <= reply.status < 300:
        return Answer("taken")
    if reply.status in (408, 425, 429) or reply.status >= 500:
        return Answer("later", f"HTTP {reply.status}", wait=reply.seconds("retry-after"))
    return Answer("closed" if reply.status in GONE else "refused", f"HTTP {reply.status}")
