"""MLPerf's ``:::MLLOG {…}`` lines. Samples (or what the benchmark counts as such) are the axis.

``eval_accuracy`` is a loss in the benchmarks of language models listed below, and a real accuracy, which is no matter
of this diagnosis, in the others.
"""

from __future__ import annotations

import re
from typing import Any

from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row
from recorder.untrusted import parse_json

LOSS_BENCHMARKS = ("gpt3", "llama2_70b_lora", "llama31_405b", "llama31_8b")
_MARK = b":::MLLOG"


class MLPerf:
    name = "mlperf"
    axis = "samples"
    stragglers = 0
    sign = re.compile(rb":::MLLOG *\{")

    def __init__(self) -> None:
        self._benchmark = ""
        self._rate = float("nan")

    def state(self) -> dict[str, Any]:
        return {"benchmark": self._benchmark}

    def restore(self, state: dict[str, Any]) -> None:
        self._benchmark = state["benchmark"]

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        rows = []
        for line in text.split(b"\n"):
            at = line.find(_MARK)
            if at < 0:
                continue
            try:
                entry = parse_json(line[at + len(_MARK) :])
                key, value, metadata = entry["key"], entry.get("value"), entry.get("metadata") or {}
            except (ValueError, KeyError, TypeError):
                continue  # cut short
            if key == "submission_benchmark":
                self._benchmark = str(value)
            elif key == "tracked_stats" and isinstance(value, dict):
                self._rate = number(value.get("throughput"))
            elif key in ("eval_accuracy", "train_loss", "eval_loss"):
                counted = next((metadata[name] for name in _COUNTS if name in metadata), None)
                if counted is None:
                    continue
                if key == "train_loss":
                    rows.append(row(iteration=number(counted), loss=printed_loss(value), rate=self._rate))
                elif key == "eval_loss" or self._benchmark in LOSS_BENCHMARKS:
                    readings.validations.append(Validation(number(counted), "", number(value)))
        readings.add_rows(rows)


_COUNTS = ("samples_count", "epoch_num", "step_num", "step")
