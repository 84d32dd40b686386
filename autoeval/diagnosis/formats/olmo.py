"""OLMo and OLMo-core: ``[step=10/10000,epoch=0]`` and below it, indented, ``train/CrossEntropyLoss=9.064`` and others.

Evaluation losses are ``eval/<set>/CrossEntropyLoss=…`` (OLMo-core: ``eval/lm/<set>/CE loss=…``).
"""

from __future__ import annotations

import re
from typing import Any

from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row

_LINE = re.compile(
    rb"\[step=(?P<step>\d+)(?:/(?P<total>\d+))?,epoch=(?P<epoch>\d+)"
    rb"|^ +(?P<key>(?:train|optim|throughput|eval)/[^=\n]+)=(?P<value>[-+\d.,eEnaifNI]+) *$",
    re.MULTILINE,
)
_KEYS = {
    b"train/CrossEntropyLoss": "loss",
    b"train/CE loss": "loss",
    b"optim/total_grad_norm": "grad_norm",
    b"optim/total grad norm": "grad_norm",
    b"optim/learning_rate_group0": "learning_rate",
    b"optim/LR (group 0)": "learning_rate",
    b"throughput/total_tokens": "tokens",
    b"throughput/total tokens": "tokens",
    b"throughput/device/tokens_per_second": "rate",
    b"throughput/device/TPS": "rate",
}
_EVAL = re.compile(rb"eval/(?:lm/)?(.+)/(?:CrossEntropyLoss|CE loss)")
_PARAMETERS = re.compile(rb"(?:Total number of|Number of total) parameters: *([\d,]+)")


class Olmo:
    name = "olmo"
    axis = "iteration"
    stragglers = 8
    sign = re.compile(rb"\[step=\d+(?:/\d+)?,epoch=\d+")

    def __init__(self) -> None:
        self._row: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        return {"row": self._row}

    def restore(self, state: dict[str, Any]) -> None:
        self._row = dict(state["row"])

    def preamble(self, text: bytes, facts: Facts) -> None:
        if match := _PARAMETERS.search(text):
            facts.parameters = number(match[1])

    def read(self, text: bytes, readings: Readings) -> None:
        rows: list[list[float]] = []
        for match in _LINE.finditer(text):
            if match["step"]:
                step = float(match["step"])
                if step != self._row.get("iteration"):
                    self._give(rows)
                    self._row = {"iteration": step}
                if match["total"]:
                    readings.facts.total = float(match["total"])
            elif (name := _KEYS.get(match["key"])) is not None:
                self._row.setdefault(name, printed_loss(match["value"]) if name == "loss" else number(match["value"]))
            elif (found := _EVAL.fullmatch(match["key"])) and "iteration" in self._row:
                name = found[1].decode("utf-8", "replace")
                readings.validations.append(Validation(self._row["iteration"], name, number(match["value"])))
        readings.add_rows(rows)

    def flush(self, readings: Readings) -> None:
        """Give the row that is being gathered, for nothing will follow."""
        rows: list[list[float]] = []
        self._give(rows)
        self._row = {}
        readings.add_rows(rows)

    def _give(self, rows: list[list[float]]) -> None:
        if "loss" in self._row:
            rows.append(row(**self._row))
