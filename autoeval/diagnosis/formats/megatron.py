"""Megatron-LM, old and new, and its relatives Megatron-DeepSpeed and GPT-NeoX.

``training_log`` prints ``iteration 10/ 500 | consumed samples: 800 | elapsed time per iteration (ms): 1963.9 | … |
learning rate: 1.0E-04 | global batch size: 80 | lm loss: 4.6E+00 | loss scale: 1.0 | grad norm: 0.488 | number of
skipped iterations: 0 | number of nan iterations: 0 |``: keys came and went with the years, so each layout that is met
becomes a pattern of its own. ``evaluate_and_print_results`` prints ``validation loss at iteration 500 | lm loss value:
2.3E+00 | lm loss PPL: 1.0E+01 |`` (also ``… on validation set |``; ``validation-1 loss …`` with several sets).
Launchers put times and ranks before either.
"""

from __future__ import annotations

import re
from typing import Any

from autoeval.diagnosis.readings import COLUMN, COLUMNS, Facts, Readings, Validation

_VALIDATION = re.compile(
    rb"validation(?P<name>[-\w]*) loss at iteration (?P<iteration>\d+)(?: on (?P<set>\w+) set)?\s*\|"
    rb"[^\n]*?lm[ _-]loss value: (?P<loss>[-+0-9.eE]+|nan|inf)"
)
_ROW = re.compile(rb"iteration +\d+/ *\d+ \|[^\n]*")
_MARK = b"elapsed time per iteration (ms)"
_KEYS = {
    b"consumed samples": "samples",
    b"consumed tokens": "tokens",
    b"elapsed time per iteration (ms)": "milliseconds",
    b"learning rate": "learning_rate",
    b"global batch size": "batch",
    b"lm loss": "loss",
    b"lm-loss": "loss",
    b"lm_loss": "loss",
    b"loss": "loss",
    b"loss scale": "loss_scale",
    b"grad norm": "grad_norm",
    b"grad_norm": "grad_norm",
    b"number of skipped iterations": "skipped",
    b"number of nan iterations": "nan",
}
_PARAMETERS = re.compile(rb"Total number of parameters in billions: ([\d.]+)")
_SHARD = re.compile(rb"number of parameters on \(tensor, pipeline\) model parallel rank (\(\d+, \d+\)): (\d+)")
_LENGTH = re.compile(rb"\bseq_length \.+ (\d+)")
_NUMBER = rb" *([-+0-9.eE]+|-?nan|-?inf) *"


def validations(text: bytes) -> list[Validation]:
    """The validation losses in ``text``, not those of test sets and not those that were cut short."""
    found = []
    for match in _VALIDATION.finditer(text):
        if match["set"] == b"test":
            continue
        try:
            loss = float(match["loss"])
        except ValueError:  # the line was cut short
            continue
        found.append(Validation(float(match["iteration"]), match["name"].decode().strip("-_"), loss))
    return found


class Megatron:
    name = "megatron"
    axis = "iteration"
    stragglers = 8
    sign = re.compile(rb"iteration +\d+/ *\d+ \| .*elapsed time per iteration|validation[-\w]* loss at iteration \d+")

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []
        self._shards: dict[bytes, float] = {}
        self.sequence_length: float | None = None

    def state(self) -> dict[str, Any]:
        return {"sequence_length": self.sequence_length}

    def restore(self, state: dict[str, Any]) -> None:
        self.sequence_length = state["sequence_length"]

    def read(self, text: bytes, readings: Readings) -> None:
        readings.validations += validations(text)
        expected = text.count(_MARK)
        if not expected:
            return
        if len(self._layouts) == 1 and (rows := self._layouts[0].rows(text)) and len(rows) == expected:
            self._take(self._layouts[0], rows, readings)
            return
        for match in _ROW.finditer(text):
            line = match[0]
            layout = next((one for one in self._layouts if one.pattern.match(line)), None)
            if layout is None and _MARK in line and (made := _Layout(line)).pattern.match(line):
                layout = made
                self._layouts = [made, *self._layouts[:31]]
            if layout is not None:
                self._take(layout, layout.rows(line), readings)
        self._layouts = self._layouts[:1] if len(self._layouts) > 8 else self._layouts

    def _take(self, layout: _Layout, rows: list[tuple[bytes, ...]], readings: Readings) -> None:
        import numpy

        values = numpy.array(rows).astype(numpy.float64)
        known = {name: values[:, index + 2] for index, name in enumerate(layout.names)}
        table = numpy.full((len(values), len(COLUMNS)), numpy.nan)
        table[:, 0] = values[:, 0]
        for name in known.keys() & COLUMN.keys():
            table[:, COLUMN[name]] = known[name]
        if "loss" in known:
            table[:, 1] = numpy.where(numpy.isnan(known["loss"]), numpy.inf, known["loss"])
        if "milliseconds" in known:
            with numpy.errstate(divide="ignore", invalid="ignore"):
                table[:, COLUMN["rate"]] = known.get("batch", 1.0) * 1000.0 / known["milliseconds"]
        if "samples" in known and "tokens" not in known and self.sequence_length:
            table[:, COLUMN["tokens"]] = known["samples"] * self.sequence_length
        readings.rows.append(table)
        readings.facts.total = float(values[-1, 1])

    def preamble(self, text: bytes, facts: Facts) -> None:
        """Sizes that are printed before the first iteration; of the shards' parameters those that are printed."""
        if match := _LENGTH.search(text):
            facts.sequence_length = self.sequence_length = float(match[1])
        self._shards |= {match[1]: float(match[2]) for match in _SHARD.finditer(text)}
        if match := _PARAMETERS.search(text):
            facts.parameters = float(match[1]) * 1e9
        elif self._shards:
            facts.parameters = sum(self._shards.values())


class _Layout:
    """One order of keys: a pattern with a number for the iteration, the last iteration, and each known key."""

    def __init__(self, line: bytes) -> None:
        self.names: list[str] = []
        told = []
        for part in line.split(b"|")[1:]:
            key, colon, _ = part.partition(b":")
            name = _KEYS.get(key.strip())
            if colon and name is not None and name not in self.names:
                self.names.append(name)
                told.append(b" *" + re.escape(key.strip()) + b":" + _NUMBER)
            else:
                told.append(rb"[^|\n]*")
        self.pattern = re.compile(rb"iteration +(\d+)/ *(\d+) *\|" + rb"\|".join(told))

    def rows(self, text: bytes) -> list[tuple[bytes, ...]]:
        return self.pattern.findall(text)
