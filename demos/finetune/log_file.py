"""What the Trainer logs, printed and kept in ``log.txt``: one printed dict a line, with its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class LogFile(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = str({key: value for key, value in logs.items() if key != "total_flos"} | {"step": state.global_step})
        print(line, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
