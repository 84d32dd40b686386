"""What ``run.py -l`` tells a Lark group, in OpenCompass's words: launched, the end of each stage, the summary."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

from recorder.messages.channel import Channel
from recorder.messages.delivery import Courier
from recorder.messages.message import Kind, Message


class JobMessages:
    """Sent by a thread of its own; without a channel nothing is. ``close`` at the end gives the last ones a moment."""

    def __init__(self, channel: Channel | None):
        self._courier = Courier([channel] if channel is not None else [])

    def started(self, work_dir: Path) -> None:
        self._tell("started", f"{_user()}'s task has been launched!", f"Results go to {work_dir.absolute()}")

    def stage_ended(self, stage: str, tasks: Sequence[str], failed: Sequence[str]) -> None:
        done = len(tasks) - len(failed)
        text = f"{_user()}'s {stage} tasks finished. {done} tasks succeeded"
        if not failed:
            self._tell("progress", "Great news: all tasks finished!", f"{text}.")
        else:
            text = f"{text}, {len(failed)} tasks failed. Failed tasks are:"
            self._tell("failure", f"Bad news: {len(failed)} failed.", text, tuple(failed))

    def summarized(self, path: Path) -> None:
        self._tell("finished", f"{_user()} 的评测已完成", f"{_user()} 的详细评测汇总已输出至 {path.absolute()}")

    def _tell(self, kind: Kind, title: str, text: str, lines: tuple[str, ...] = ()) -> None:
        self._courier.send(Message(kind, "bad" if kind == "failure" else "good", title, text, lines=lines))

    def close(self) -> None:
        self._courier.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "someone"
