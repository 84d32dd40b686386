"""Messages to a Lark (Feishu) group: launched, each stage's end, the summary. Never in the way of the run."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10.0


class LarkReporter:
    """Posts to a custom bot's webhook. Without a ``url`` it says nothing; a message that fails is a line in the log."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    def started(self) -> None:
        self.post(f"{_user()}'s task has been launched!")

    def stage_ended(self, stage: str, tasks: Sequence[str], failed: Sequence[str]) -> None:
        done = len(tasks) - len(failed)
        if not failed:
            self.post(f"{_user()}'s {stage} tasks finished. {done} tasks succeeded.", "Great news: all tasks finished!")
            return
        listed = "\n".join(failed)
        text = f"{_user()}'s {stage} tasks finished. {done} tasks succeeded, {len(failed)} tasks failed."
        self.post(f"{text} Failed tasks are:\n{listed}", f"Bad news: {len(failed)} failed.")

    def summarized(self, path: Path) -> None:
        self.post(f"{_user()} 的详细评测汇总已输出至 {path.absolute()}")

    def post(self, content: str, title: str | None = None) -> None:
        """A text, or with a title a post."""
        if self._url is None:
            return
        import requests

        if title is None:
            message: dict[str, Any] = {"msg_type": "text", "content": {"text": content}}
        else:
            body = {"title": title, "content": [[{"tag": "text", "text": content}]]}
            message = {"msg_type": "post", "content": {"post": {"zh_cn": body}}}
        try:
            answer = requests.post(self._url, json=message, timeout=_TIMEOUT_SECONDS)
            if answer.status_code != 200 or answer.json().get("code", 0) != 0:
                logger.warning("Lark did not take a message: HTTP %d", answer.status_code)
        except (requests.RequestException, ValueError) as error:
            logger.warning("Lark cannot be reached: %s", type(error).__name__)  # its text would have the webhook


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "someone"
