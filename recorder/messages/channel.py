"""Where messages go. The address and the secret are shown nowhere: not in ``repr``, not in logs, not in errors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

ENVIRONMENT = "AUTOEVAL_MESSAGES"  # how the daemon tells the views' process; not a file, not the command line

Name = Literal["lark", "slack", "webhook"]
LarkFormat = Literal["card", "post", "text"]


class ChannelError(ValueError):
    """An address that cannot be one; the message does not contain it."""


@dataclass(frozen=True)
class Channel:
    """``address`` is the webhook's URL. ``secret`` and ``format`` are Lark's."""

    name: Name
    address: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    format: LarkFormat = "card"

    def __post_init__(self) -> None:
        check_address(self.address)

    @property
    def host(self) -> str:
        """What may be shown of the address."""
        return urlsplit(self.address).hostname or ""


def check_address(address: str) -> None:
    """Raises ``ChannelError``: a webhook is an absolute http(s) URL, https unless it stays on this machine."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ChannelError("expected the URL of a webhook, found something that is no URL") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in address):
        raise ChannelError("expected the URL of a webhook, https://…, found something else (not shown: it is a secret)")
    if parts.scheme == "http" and host not in ("127.0.0.1", "localhost", "::1"):
        raise ChannelError(f"expected https://: over http:// everybody on the way to {host} reads the webhook")


@dataclass(frozen=True)
class Told:
    """What the views' process is told of messages. ``since``: Unix time at which the daemon began; what was evaluated
    before messages were first asked for is not told. ``model`` is the run at work, ``finished`` whether to its end."""

    channels: tuple[Channel, ...] = ()
    model: str = ""
    watching: str = ""
    tasks: tuple[str, ...] = ()
    since: float = 0.0
    finished: bool = False


def to_environment(told: Told) -> dict[str, str]:
    """The variable that carries ``told`` to the views' process; empty without channels."""
    if not told.channels:
        return {}
    channels = [{"name": c.name, "address": c.address, "secret": c.secret, "format": c.format} for c in told.channels]
    rest = {"model": told.model, "watching": told.watching, "tasks": list(told.tasks)}
    return {ENVIRONMENT: json.dumps({"channels": channels, **rest, "since": told.since, "finished": told.finished})}


def from_environment() -> Told:
    """Read the variable and remove it, so that no process started from here has it."""
    text = os.environ.pop(ENVIRONMENT, "")
    if not text:
        return Told()
    content: Mapping[str, Any] = json.loads(text)
    return Told(
        channels=tuple(Channel(**channel) for channel in content["channels"]),
        model=content["model"],
        watching=content["watching"],
        tasks=tuple(content["tasks"]),
        since=content["since"],
        finished=content["finished"],
    )
