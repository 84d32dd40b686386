"""modded-nanogpt, llm.c and nanoGPT: one short line a step.

modded-nanogpt ``step:125/6200 val_loss:5.2017 train_time:…ms step_avg:…`` and ``step:1/6200 train_loss:10.9 …``, llm.c
``s:250 tel:6.1710`` (evaluation) and ``s:0 trl:11.0091 lr:0.000001 norm:15.37``, nanoGPT ``iter 10: loss 4.2, time 12ms``
and ``step 250: train loss 2.1, val loss 2.2``.
"""

from __future__ import annotations

import math
import re
from typing import Any

from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row

_N = rb"(-?[\d.]+(?:e[-+]?\d+)?|-?nan|-?inf)"
_LINE = re.compile(
    rb"^.{0,80}?(?:"
    rb"step:(\d+)/(\d+) (train|val)_loss:" + _N + rb"(?: train_time:(\d+)ms)?"
    rb"|s:(\d+) t([er])l:" + _N + rb"(?: lr:" + _N + rb" norm:" + _N + rb")?"
    rb"|iter (\d+): loss " + _N + rb", time " + _N + rb"ms"
    rb"|step (\d+): train loss " + _N + rb", val loss " + _N + rb")",
    re.MULTILINE,
)


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
        rows = []
        for match in _LINE.finditer(text):
            step, total, kind, loss, time, s, er, s_loss, lr, norm, iteration, i_loss, i_time, at, _, at_loss = (
                match.groups()
            )
            if step:
                readings.facts.total = float(total)
                if kind == b"val":
                    readings.validations.append(Validation(float(step), "", number(loss)))
                else:
                    rate = self._rate(float(step), number(time))
                    rows.append(row(iteration=float(step), loss=printed_loss(loss), rate=rate))
            elif s:
                if er == b"e":
                    readings.validations.append(Validation(float(s), "", number(s_loss)))
                else:
                    rows.append(
                        row(
                            iteration=float(s),
                            loss=printed_loss(s_loss),
                            learning_rate=number(lr),
                            grad_norm=number(norm),
                        )
                    )
            elif iteration:
                milliseconds = number(i_time)
                rate = 1000.0 / milliseconds if milliseconds > 0 else math.nan
                rows.append(row(iteration=float(iteration), loss=printed_loss(i_loss), rate=rate))
            else:
                readings.validations.append(Validation(float(at), "", number(at_loss)))
        readings.add_rows(rows)

    def _rate(self, step: float, milliseconds: float) -> float:
        """Steps a second since the row before; the clock starts again after warming up."""
        (before, then), self._last = self._last, (step, milliseconds)
        ahead = step > before and milliseconds > then
        return 1000.0 * (step - before) / (milliseconds - then) if ahead else math.nan
