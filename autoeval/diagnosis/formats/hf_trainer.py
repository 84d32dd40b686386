"""Hugging Face's Trainer: the dictionaries it prints, and its ``trainer_state.json``.

Printed: ``{'loss': 1.6282, 'learning_rate': 1.8e-05, 'epoch': 0.22}`` (since 2026 the numbers are quoted) and
``{'eval_loss': 0.0012, …, 'epoch': 1.0}``, between progress bars; they tell the epoch and not the step, so the epoch is
the axis. ``trainer_state.json`` has the same dictionaries with their ``step`` under ``log_history``; it is read object
by object, like a stream. With several evaluation sets the keys are ``eval_<set>_loss``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row

_PRINTED = re.compile(rb"\{'[^{}\n]*'epoch': [^{}\n]*\}")
_PAIR = re.compile(rb"'(\w+)': '?([-+\d.einfaNI]+)'?[,}]")
_OBJECT = re.compile(rb"\{[^{}]*\"step\":[^{}]*\}")
_EVAL_LOSS = re.compile(r"eval_(?:(?P<name>.+)_)?loss")
_MAX_STEPS = re.compile(rb"\"max_steps\": *(\d+)")


class PrintedDicts:
    name = "hf-trainer-printed"
    axis = "epoch"
    stragglers = 0
    sign = re.compile(rb"\{'(?:loss|eval_\w*loss|eval_runtime)': [^{}\n]*'epoch': ")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        rows = []
        for match in _PRINTED.finditer(text):
            entry = {key.decode(): number(value) for key, value in _PAIR.findall(match[0])}
            if "epoch" in entry:
                rows += take(entry, entry["epoch"], readings)
        readings.add_rows(rows)


class TrainerState:
    rewritten = True
    name = "hf-trainer-state"
    axis = "iteration"
    stragglers = 0
    sign = re.compile(rb"\"log_history\": *\[")

    def __init__(self) -> None:
        self._rest = b""

    def state(self) -> dict[str, Any]:
        return {"rest": self._rest.decode("utf-8", "replace")}

    def restore(self, state: dict[str, Any]) -> None:
        self._rest = state["rest"].encode()

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        text = self._rest + text
        rows, end = [], 0
        for match in _OBJECT.finditer(text):
            end = match.end()
            try:
                entry = json.loads(match[0])
                rows += take(entry, float(entry["step"]), readings)
            except (ValueError, TypeError):
                continue  # no entry of the history
        begun = text.rfind(b"{", end)
        self._rest = text[begun:] if begun >= 0 and len(text) - begun < 1 << 20 else b""
        readings.add_rows(rows)
        if found := _MAX_STEPS.search(text):
            readings.facts.total = float(found[1])


def take(entry: Mapping[str, Any], iteration: float, readings: Readings) -> list[list[float]]:
    """Validation losses of a Trainer's entry go into ``readings``; its training row, if it is one, is returned."""
    for key, value in entry.items():
        if key.startswith("eval_") and (match := _EVAL_LOSS.fullmatch(key)):
            readings.validations.append(Validation(iteration, match["name"] or "", number(value)))
    if "loss" not in entry:
        return []
    return [
        row(
            iteration=iteration,
            loss=printed_loss(entry["loss"]),
            grad_norm=number(entry.get("grad_norm")),
            learning_rate=number(entry.get("learning_rate", entry.get("lr"))),
            tokens=number(entry.get("num_input_tokens_seen", entry.get("num_tokens", entry.get("total_tokens")))),
            epoch=number(entry.get("epoch")),
        )
    ]
