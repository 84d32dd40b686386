"""W&B, Lark, Slack and webhooks: whether what is configured would be taken. No key and no address is shown."""

from __future__ import annotations

import json
import netrc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from autoeval.config import AutoEval
from autoeval.doctor.finding import Finding, ok, problem, warning
from recorder.messages.channel import Channel
from recorder.messages.delivery import deliver, pace_of
from recorder.messages.message import Message

HOME = Path(__file__).resolve().parents[2]
WANDB_SECONDS = 60.0
_ACTIONS = {
    "refused": "wandb login, or set WANDB_API_KEY to a key of this server",
    "away": "look at wandb.base_url and the network; what is not sent is kept and sent later",
}


def examine_wandb(config: AutoEval) -> Iterator[Finding]:
    """Online: a question to the server that needs the key. Nothing is written there."""
    settings = config.wandb
    assert settings is not None and settings.mode is not None
    if settings.mode != "online":
        later = "; --sync-wandb sends it when there is a network" if settings.mode == "offline" else ""
        yield ok("wandb", f"mode {settings.mode}: nothing is sent, no key is needed{later}")
        return
    address = settings.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlparse(address).hostname or address
    if (source := _key_from(host)) is None:
        found = f"mode online, and there is no key for {host}"
        yield problem("wandb", found, "WANDB_API_KEY, or an entry in ~/.netrc", f"wandb login --host {address}")
        return
    project = f"{settings.entity or 'the key’s entity'}/{config.wandb_project}"
    answer = _ask({"project": config.wandb_project, "entity": settings.entity, "base_url": settings.base_url})
    if "error" in answer:
        finding = problem if answer["trouble"] == "refused" else warning
        action = _ACTIONS.get(answer["trouble"], "see docs/wandb.md")
        yield finding("wandb", f"{host}: {answer['error']}", f"an answer of {host} to the key from {source}", action)
    elif settings.entity and settings.entity not in (answer["user"], *answer["teams"]):
        known = ", ".join([answer["user"], *answer["teams"]])
        found = f"{host} knows {answer['user']}, who is not in {settings.entity} (but in {known})"
        yield problem("wandb", found, "an entity that the key may write to", "correct wandb.entity, or ask to be added")
    else:
        yield ok("wandb", f"{host} knows {answer['user']} (key from {source}); runs go to {project}")


def _key_from(host: str) -> str | None:
    """Where the client will find a key; its value is not read out."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "WANDB_IDENTITY_TOKEN_FILE"
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return str(path) if netrc.netrc(str(path)).authenticators(host) else None
    except (OSError, netrc.NetrcParseError):
        return None


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "recorder.wandb_account"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            command,
            cwd=HOME,
            env=environment,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=WANDB_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {WANDB_SECONDS:.0f} s", "trouble": "away"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except (IndexError, ValueError):
        return {"error": f"the client ended with code {done.returncode}", "trouble": "other"}


def examine_messages(channels: Sequence[Channel], project: str, *, send: bool) -> Iterator[Finding]:
    """The host of each webhook is looked up. A message goes there only when ``send``: a group is no place for tests."""
    for channel in channels:
        check = f"messages to {channel.name}"
        try:
            socket.getaddrinfo(channel.host, None)
        except OSError as error:
            found = f"the name {channel.host} is not known on this machine: {error.strerror}"
            yield problem(check, found, "a webhook's host", "correct the address, or mend name resolution (DNS, proxy)")
            continue
        signed = ", signed" if channel.secret else ""
        if not send:
            told = f"{channel.host}{signed}; nothing was sent (--send-test-message sends; the address is not shown)"
            yield ok(check, told)
            continue
        text = "A test message, asked for with --doctor --send-test-message. Nothing is wrong."
        answer = deliver(
            channel, Message("test", "plain", "autoeval: test message", text, project=project), pace_of(channel)
        )
        if answer.verdict == "taken":
            yield ok(check, f"{channel.host}{signed} has taken a test message")
        else:
            action = "look at the webhook's settings, and docs/messages.md"
            yield problem(
                check, f"{channel.host} did not take a test message: {answer.why}", "an answer that it did", action
            )
