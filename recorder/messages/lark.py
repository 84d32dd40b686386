"""Lark's (Feishu's) custom bots: their three message formats, their signature, their answers.

Source: "Custom bot usage guide", open.larksuite.com/document/client-docs/bot-v3/add-custom-bot. Success is HTTP 200 with
``{"code": 0, "msg": "success"}`` or the older ``{"StatusCode": 0, "StatusMessage": "success"}``; an error is a code other
than 0, with HTTP 200 or not. A bot takes 5 messages a second and 100 a minute, each of 20 KB at most.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Any

from recorder.messages.answer import GONE, Answer, Reply
from recorder.messages.channel import Channel
from recorder.messages.message import Message
from recorder.untrusted import parse_json

PER_SECOND, PER_MINUTE = 5, 100

_RATE_LIMITED = {11232, 11247, 99991400}
MALFORMED = 9499
_CLOSED = {
    19001: "the webhook's token is not valid: was the bot removed?",
    19021: "the signature does not match, or this machine's clock is more than an hour off: check lark.secret",
    19022: "this machine's address is not on the bot's list of allowed addresses",
    19024: "the message lacks the keyword that the bot asks for: add 'autoeval' to its keywords",
}
_COLOUR = {"good": "green", "bad": "red", "unsure": "yellow", "plain": "blue"}


def payload(message: Message, channel: Channel, now: float) -> dict[str, Any]:
    """The body of the POST; signed when the channel has a secret. ``now``: Unix seconds."""
    message = message.shortened()
    body = {"text": _text, "post": _post, "card": _card}[channel.format](message)
    if channel.secret:
        stamp = str(int(now))
        body = {"timestamp": stamp, "sign": signature(stamp, channel.secret), **body}
    return body


def signature(timestamp: str, secret: str) -> str:
    """Base64 of the HMAC-SHA256 of an *empty* message under the key ``<timestamp>\\n<secret>``, as Lark asks for it."""
    key = f"{timestamp}\n{secret}".encode()
    return base64.b64encode(hmac.new(key, b"", hashlib.sha256).digest()).decode()


def judge(reply: Reply) -> Answer:
    code = _code(reply)
    if code == 0 and reply.status == 200:
        return Answer("taken")
    if code in _RATE_LIMITED or reply.status == 429:
        return Answer("later", f"rate limit (code {code})", wait=reply.seconds("x-ogw-ratelimit-reset", "retry-after"))
    if reply.status >= 500:
        return Answer("later", f"HTTP {reply.status}")
    if code in _CLOSED:
        return Answer("closed", f"code {code}: {_CLOSED[code]}")
    if code == MALFORMED:
        return Answer("refused", f"code {code}: the message is not as Lark expects it")
    if reply.status == 200 and code is None:
        return Answer("later", "HTTP 200, but not an answer of Lark's: a proxy's page?")
    if reply.status in GONE or 300 <= reply.status < 400:
        return Answer("closed", f"HTTP {reply.status}, code {code}: is the webhook still there?")
    return Answer("refused", f"HTTP {reply.status}, code {code}")


def _code(reply: Reply) -> int | None:
    try:
        content = parse_json(reply.body)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    code = content.get("code", content.get("StatusCode"))
    return code if type(code) is int else None


def _text(message: Message) -> dict[str, Any]:
    return {"msg_type": "text", "content": {"text": _no_mention(f"{message.title}\n{message.plain()}".strip())}}


def _post(message: Message) -> dict[str, Any]:
    lines = [[{"tag": "text", "text": line}] for line in message.plain().splitlines()]
    return {"msg_type": "post", "content": {"post": {"zh_cn": {"title": message.title, "content": lines}}}}


def _card(message: Message) -> dict[str, Any]:
    elements: list[dict[str, Any]] = []
    if message.text:
        elements.append({"tag": "div", "text": {"tag": "plain_text", "content": message.text}})
    if message.facts:
        fields = [
            {"is_short": True, "text": {"tag": "lark_md", "content": f"**{markdown(label)}**\n{markdown(value)}"}}
            for label, value in message.facts
        ]
        elements.append({"tag": "div", "fields": fields})
    if message.lines:
        elements += [{"tag": "hr"}, {"tag": "div", "text": {"tag": "plain_text", "content": "\n".join(message.lines)}}]
    note = " · ".join(part for part in ("autoeval", message.project, message.model) if part)
    elements.append({"tag": "note", "elements": [{"tag": "plain_text", "content": note}]})
    title = {"tag": "plain_text", "content": message.title}
    card = {
        "config": {"wide_screen_mode": True},
        "header": {"title": title, "template": _COLOUR[message.tone]},
        "elements": elements,
    }
    return {"msg_type": "interactive", "card": card}


def markdown(text: str) -> str:
    """``text`` in Lark's markdown, meaning itself: no formatting, no link, no ``<at id=all>``."""
    return re.sub(r"[<>*_~`\[\]()#\\&]", lambda found: f"&#{ord(found[0])};", text)


def _no_mention(text: str) -> str:
    """In a text message ``<at user_id="all">`` calls everybody, and there is no escape: a space breaks it."""
    return re.sub(r"<(?=/?at\b)", "< ", text, flags=re.IGNORECASE)
