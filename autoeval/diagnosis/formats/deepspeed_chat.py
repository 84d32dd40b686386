"""DeepSpeed-Chat's three steps, and the lines of DeepSpeed itself among them.

DeepSpeed prints ``step=90, skipped=6, lr=[8.1e-06, …]`` and ``global_step=90, RunningAvgSamplesPerSec=…,
CurrSamplesPerSec=83.7``, for each engine (actor and critic); overflows as ``Attempted loss scale: 65536, reducing to
32768``. Step 1 prints ``Epoch: 0, Step: 5, Rank: 0, loss = 2.1`` and ``ppl: 5.2, loss: 1.65`` of the evaluation, step 2
(and DPO) ``chosen: …, rejected: …, loss: 0.66`` of the evaluation, step 3 ``epoch: 0|step: 5|ppo_ep: 1|act_loss: 0.02``.
The losses of PPO do not say how well the model fits: they are read for what is not finite only.
"""

from __future__ import annotations

import math
import re
from typing import Any

from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row

_LINE = re.compile(
    rb"step=(?P<step>\d+), skipped=(?P<skipped>\d+), lr=\[(?P<lr>[-\d.e+]+)"
    rb"|global_step=(?P<timed>\d+), RunningAvgSamplesPerSec=[-\d.e+]+, CurrSamplesPerSec=(?P<rate>[-\d.e+]+)"
    rb"|Attempted loss scale: (?P<scale>[\d.e+]+), (?:but hysteresis|reducing)"
    rb"|Epoch: \d+, Step: (?P<sft>\d+), Rank: \d+, loss = (?:tensor\()?(?P<loss>[-\d.e+naif]+)"
    rb"|(?:ppl: [-\d.e+naif]+|chosen: [-\d.e+naif]+, rejected: [-\d.e+naif]+), loss: (?P<eval>[-\d.e+naif]+)"
    rb"|step: (?P<ppo>\d+)\|ppo_ep: \d+\|act_loss: (?P<actor>[-\d.e+naif]+)"
)


class DeepSpeedChat:
    name = "deepspeed-chat"
    axis = "iteration"
    stragglers = 0
    sign = re.compile(
        rb"\|ppo_ep: \d+\||chosen_last_scores \(higher|Evaluating (?:rewards?|perplexity), Epoch \d"
        rb"|Total (?:Micro|Generation) Batches \d+|\[Rank 0\] step=\d+, skipped=\d+, lr=\["
    )

    def __init__(self) -> None:
        self._step = 0.0
        self._skipped = 0.0
        self._row: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        return {"step": self._step, "skipped": self._skipped, "row": self._row}

    def restore(self, state: dict[str, Any]) -> None:
        self._step, self._skipped, self._row = state["step"], state["skipped"], dict(state["row"])

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        rows: list[list[float]] = []
        for match in _LINE.finditer(text):
            if match["step"]:
                self._on(float(match["step"]), rows)
                if "learning_rate" not in self._row:  # the first engine's
                    self._row["learning_rate"] = number(match["lr"])
                    skipped = number(match["skipped"])
                    self._row["skipped"] = max(0.0, skipped - self._skipped)
                    self._skipped = skipped
            elif match["timed"]:
                self._on(float(match["timed"]), rows)
                self._row.setdefault("rate", number(match["rate"]))
            elif match["scale"]:
                self._row["loss_scale"] = number(match["scale"])
            elif match["sft"]:
                self._on(float(match["sft"]) + 1, rows)
                self._row.setdefault("loss", printed_loss(match["loss"]))
            elif match["eval"]:
                readings.validations.append(Validation(self._step, "", number(match["eval"])))
            elif match["ppo"]:
                self._on(float(match["ppo"]) + 1, rows)
                if not math.isfinite(number(match["actor"])):
                    self._row["loss"] = math.inf
        readings.add_rows(rows)

    def flush(self, readings: Readings) -> None:
        """Give the row that is being gathered, for nothing will follow."""
        rows: list[list[float]] = []
        self._on(math.inf, rows)
        readings.add_rows(rows)

    def _on(self, step: float, rows: list[list[float]]) -> None:
        """Gather for ``step``; the row of an earlier one is complete. Lines of an earlier step are another engine's."""
        if step <= self._step:
            return
        if self._row and self._step > 0:
            rows.append(row(iteration=self._step, **self._row))
            self._row = {}
        self._step = step
