"""modded-nanogpt, llm.c and nanoGPT: one short line a step.

modded-nanogpt ``step:125/6200 val_loss:5.2017 train_time:…ms step_avg:…`` and ``step:1/6200 train_loss:10.9 …``, llm.c
``s:250 tel:6.1710`` (evaluation) and ``s:0 trl:11.0091 lr:0.000001 norm:15.37``, nanoGPT ``iter 10: loss 4.2, time 12ms``
and ``step 250: train loss 2.1, val loss 2.2``.
"""

from __future__ import annotations

import math
import re
from typing import Any

from autoeval.diagnosis.formats.layouts import NUMBER, Layout, columns
from autoeval.diagnosis.readings import Facts, Readings, Validation, number

_STEP = (
    rb"step:(\d+)/\d+ train_loss:" + NUMBER
)  # where it ends is looked for once a piece: a group costs as much as a row
_TOTAL = re.compile(rb"step:\d+/(\d+) train_loss:")
_TRAINED = (
    (b" train_loss:", Layout(re.compile(_STEP + rb"(?: train_time:(\d+)ms)"), ("iteration", "loss", "time"))),
    (b" train_loss:", Layout(re.compile(_STEP + rb"(?![\w.+-]| train_time)"), ("iteration", "loss"))),
    (
        b" trl:",
        Layout(
            re.compile(rb"s:(\d+) trl:" + NUMBER + b" lr:" + NUMBER + b" norm:" + NUMBER),
            ("iteration", "loss", "learning_rate", "grad_norm"),
        ),
    ),
    (b" trl:", Layout(re.compile(rb"s:(\d+) trl:" + NUMBER + rb"(?![\w.+-]| lr:)"), ("iteration", "loss"))),
    (
        b"iter ",
        Layout(re.compile(rb"iter (\d+): loss " + NUMBER + b", time " + NUMBER + b"ms"), ("iteration", "loss", "each")),
    ),
)
_VALIDATED = (  # one by one: a pattern that begins with no letter of its own is looked for four times slower
    re.compile(rb"step:(\d+)/\d+ val_loss:" + NUMBER),
    re.compile(rb"s:(\d+) tel:" + NUMBER),
    re.compile(rb"step (\d+): train loss [-\w.+]+, val loss " + NUMBER),
)
_VALIDATION_MARKS = (b" val_loss:", b" tel:", b", val loss ")


class NanoGPT:
    name = "modded-nanogpt"
    axis = "iteration"
    stragglers = 8
    sign = re.compile(
        rb"^.{0,80}?(?:step:\d+/\d+ (?:train|val)_loss:[\d.n]|s:\d+ t[er]l:[\d.n]|iter \d+: loss [\d.n]+, time )", re.M
    )

    def __init__(self) -> None:
        self._last = (math.nan, math.nan)  # step and milliseconds

    def state(self) -> dict[str, Any]:
        return {"last": [None if math.isnan(value) else value for value in self._last]}

    def restore(self, state: dict[str, Any]) -> None:
        step, milliseconds = (math.nan if value is None else float(value) for value in state["last"])
        self._last = (step, milliseconds)

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        for mark, layout in _TRAINED:
            if mark in text and (rows := layout.pattern.findall(text)):
                self._take(columns(layout, rows), readings)
        if found := _TOTAL.match(text, max(0, text.rfind(b"step:", 0, text.rfind(b" train_loss:")))):
            readings.facts.total = float(found[1])
        for mark, pattern in zip(_VALIDATION_MARKS, _VALIDATED, strict=True):
            for match in pattern.finditer(text) if mark in text else ():
                readings.validations.append(Validation(float(match[1]), "", number(match[2])))

    def _take(self, known: dict[str, Any], readings: Readings) -> None:
        """``time`` is in milliseconds since the clock started, again after warming up; ``each`` of one step."""
        import numpy

        with numpy.errstate(divide="ignore", invalid="ignore"):
            if "time" in known:
                steps = numpy.diff(known["iteration"], prepend=self._last[0])
                passed = numpy.diff(known["time"], prepend=self._last[1])
                self._last = (float(known["iteration"][-1]), float(known["time"][-1]))
                known["rate"] = numpy.where((steps > 0) & (passed > 0), 1000.0 * steps / passed, numpy.nan)
            elif "each" in known:
                known["rate"] = 1000.0 / known["each"]
        readings.add_columns(known)
