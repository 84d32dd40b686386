"""Slack's incoming webhooks: blocks, with a plain text for notifications.

Source: docs.slack.dev, "Sending messages using incoming webhooks" and "Block Kit": HTTP 200 ``ok``, 429 with
``Retry-After``, 4xx with a word that says why. About one message a second.
"""

from __future__ import annotations

from typing import Any

from recorder.messages.answer import GONE, Answer, Reply
from recorder.messages.channel import Channel
from recorder.messages.message import Message

PER_SECOND, PER_MINUTE = 1, 50

_EMOJI = {"good": ":large_green_circle:", "bad": ":red_circle:", "unsure": ":large_yellow_circle:"}
_REFUSED = frozenset({"invalid_payload", "no_text", "too_many_attachments", "invalid_blocks", "invalid_blocks_format"})
_CLOSED = frozenset(
    [
        "user_not_found",
        "action_prohibited",
        "channel_not_found",
        "channel_is_archived",
        "no_service",
        "no_team",
        "team_disabled",
        "posting_to_general_channel_denied",
        "invalid_token",
        "no_active_hooks",
    ]
)


def payload(message: Message, channel: Channel, now: float) -> dict[str, Any]:
    """The body of the POST."""
    message = message.shortened()
    emoji = _EMOJI.get(message.tone)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": message.title, "emoji": False}}
    ]
    if message.text:
        text = f"{emoji} {mrkdwn(message.text)}" if emoji else mrkdwn(message.text)
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}})
    if message.facts:
        fields = [{"type": "mrkdwn", "text": f"*{mrkdwn(label)}*\n{mrkdwn(value)}"} for label, value in message.facts]
        blocks.append({"type": "section", "fields": fields})
    blocks += [{"type": "section", "text": {"type": "plain_text", "text": line}} for line in message.lines]
    note = " · ".join(mrkdwn(part) for part in ("autoeval", message.project, message.model) if part)
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": note}]})
    return {"text": mrkdwn(f"{message.title}: {message.text}" if message.text else message.title), "blocks": blocks}


def mrkdwn(text: str) -> str:
    """The three characters that Slack asks to escape; so ``<!channel>`` calls nobody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def judge(reply: Reply) -> Answer:
    if reply.status == 200:
        return Answer("taken")
    if reply.status == 429:
        return Answer("later", "rate limit", wait=reply.seconds("retry-after"))
    if reply.status >= 500:
        return Answer("later", f"HTTP {reply.status}")
    said = reply.body.strip()  # shown only when it is a word that Slack documents: a body may repeat the request
    if said in _REFUSED:
        return Answer("refused", f"HTTP {reply.status}, {said}")
    if said in _CLOSED:
        return Answer("closed", f"HTTP {reply.status}, {said}")
    return Answer("closed" if reply.status in GONE else "refused", f"HTTP {reply.status}")
