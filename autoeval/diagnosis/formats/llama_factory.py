"""LLaMA-Factory's ``trainer_log.jsonl``: a JSON object a line.

``{"current_steps": 5, "total_steps": 2178, "loss": 2.35, "lr": 1.8e-06, "epoch": 0.002, "elapsed_time": "0:32:48", …}``;
evaluations have ``eval_loss`` instead of ``loss``.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from autoeval.diagnosis.formats.hf_trainer import take
from autoeval.diagnosis.readings import COLUMN, Facts, Readings

_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+)")


class LlamaFactory:
    name = "llama-factory"
    axis = "iteration"
    stragglers = 0
    sign = re.compile(rb"\{\"current_steps\": *\d+")

    def __init__(self) -> None:
        self._last = (math.nan, math.nan)  # step and seconds

    def state(self) -> dict[str, Any]:
        return {"last": [None if math.isnan(value) else value for value in self._last]}

    def restore(self, state: dict[str, Any]) -> None:
        step, seconds = (math.nan if value is None else float(value) for value in state["last"])
        self._last = (step, seconds)

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        rows = []
        for line in text.split(b"\n"):
            begun = line.find(b'{"current_steps"')
            if begun < 0:
                continue
            try:
                entry = json.loads(line[begun:])
                step = float(entry["current_steps"])
            except (ValueError, TypeError, KeyError):
                continue  # cut short
            if isinstance(entry.get("total_steps"), (int, float)):
                readings.facts.total = float(entry["total_steps"])
            for values in take(entry, step, readings):
                values[COLUMN["rate"]] = self._rate(step, str(entry.get("elapsed_time", "")))
                if not values[COLUMN["tokens"]]:  # 0 where it does not count
                    values[COLUMN["tokens"]] = math.nan
                rows.append(values)
        readings.add_rows(rows)

    def _rate(self, step: float, elapsed: str) -> float:
        """Steps a second since the row before."""
        match = _TIME.fullmatch(elapsed)
        if match is None:
            return math.nan
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        now = ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
        (before, then), self._last = self._last, (step, now)
        return (step - before) / (now - then) if now > then and step > before else math.nan
