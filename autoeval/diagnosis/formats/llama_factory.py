"""LLaMA-Factory's ``trainer_log.jsonl``: a JSON object a line.

``{"current_steps": 5, "total_steps": 2178, "loss": 2.35, "lr": 1.8e-06, "epoch": 0.002, "elapsed_time": "0:32:48", …}``;
evaluations have ``eval_loss`` instead of ``loss``.
"""

from __future__ import annotations

import math
import re
from typing import Any

from autoeval.diagnosis.formats.hf_trainer import take
from autoeval.diagnosis.formats.layouts import NUMBER, Layout, LayoutReader
from autoeval.diagnosis.readings import Facts, Readings
from recorder.untrusted import parse_json

_TIME = re.compile(rb'"(?:(\d+) days?, )?\d+:\d+:\d+"')
_LINE = re.compile(rb'\{"current_steps"[^{}\n]*\}')
_PAIR = re.compile(rb'"(\w+)": *("[^"\n]*"|[^,}\n]+)')
_TOTAL = re.compile(rb'"total_steps": *"?(\d+)')
_COLUMNS = {
    b"current_steps": "iteration",
    b"loss": "loss",
    b"lr": "learning_rate",
    b"learning_rate": "learning_rate",
    b"epoch": "epoch",
    b"total_tokens": "tokens",
}


class LlamaFactory:
    name = "llama-factory"
    axis = "iteration"
    stragglers = 0
    sign = re.compile(rb"\{\"current_steps\": *\d+")

    def __init__(self) -> None:
        self._last = (math.nan, math.nan)  # step and seconds
        self._rows = LayoutReader(b'"loss": ', _LINE, _layout)

    def state(self) -> dict[str, Any]:
        return {"last": [None if math.isnan(value) else value for value in self._last]}

    def restore(self, state: dict[str, Any]) -> None:
        step, seconds = (math.nan if value is None else float(value) for value in state["last"])
        self._last = (step, seconds)

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        for known in self._rows.read(text):
            tokens = known.get("tokens")
            if tokens is not None and not tokens.any():  # 0 where it does not count them
                del known["tokens"]
            known["rate"] = self._rates(known)
            readings.add_columns(known)
        if found := _TOTAL.match(text, max(0, text.rfind(b'"total_steps":'))):  # the newest of the piece
            readings.facts.total = float(found[1])
        if b'"eval_' not in text:
            return
        for match in _LINE.finditer(text):
            if b'"eval_' not in match[0]:
                continue
            try:
                entry = parse_json(match[0])
                take({key: value for key, value in entry.items() if key != "loss"}, entry["current_steps"], readings)
            except ValueError:
                continue  # cut short

    def _rates(self, known: dict[str, Any]) -> Any:
        """Steps a second since the row before."""
        import numpy

        if "seconds" not in known:
            return numpy.full(len(known["iteration"]), numpy.nan)
        now = ((known.get("days", 0.0) * 24 + known["hours"]) * 60 + known["minutes"]) * 60 + known["seconds"]
        steps = numpy.diff(known["iteration"], prepend=self._last[0])
        seconds = numpy.diff(now, prepend=self._last[1])
        self._last = (float(known["iteration"][-1]), float(now[-1]))
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return numpy.where((steps > 0) & (seconds > 0), steps / seconds, numpy.nan)


def _layout(line: bytes) -> Layout | None:
    """Of a line with a loss: a number for each key that is known here, and four for the time that has passed."""
    told, names = list[bytes](), list[str]()
    for match in _PAIR.finditer(line):
        value = rb'(?:"[^"\n]*"|[^,}\n]+)'
        if match[1] == b"elapsed_time" and (time := _TIME.fullmatch(match[2])):
            names += ("days", "hours", "minutes", "seconds")[0 if time[1] else 1 :]
            value = b'"' + (rb"(\d+) days?, " if time[1] else b"") + rb"(\d+):(\d+):(\d+)" + b'"'
        elif match[1] in _COLUMNS and _COLUMNS[match[1]] not in names:
            names.append(_COLUMNS[match[1]])
            value = b'"?' + NUMBER + b'"?'
        told.append(b'"' + match[1] + b'": *' + value)
    pattern = b"\\{" + b", *".join(told)
    return Layout(re.compile(pattern), tuple(names)) if {"iteration", "loss"} <= set(names) else None
