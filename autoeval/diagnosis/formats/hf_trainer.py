"""Hugging Face's Trainer: the dictionaries it prints, and its ``trainer_state.json``.

Printed: ``{'loss': 1.6282, 'learning_rate': 1.8e-05, 'epoch': 0.22}`` (since 2026 the numbers are quoted) and
``{'eval_loss': 0.0012, …, 'epoch': 1.0}``, between progress bars; they tell the epoch and not the step, so the epoch is
the axis. ``trainer_state.json`` has the same dictionaries with their ``step`` under ``log_history``; it is read object
by object, like a stream. With several evaluation sets the keys are ``eval_<set>_loss``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autoeval.diagnosis.formats.layouts import NUMBER, Layout, LayoutReader
from autoeval.diagnosis.readings import Facts, Readings, Validation, number, printed_loss, row
from recorder.untrusted import parse_json

# What must be inside is looked for afterwards: a pattern with two stars takes the square of a long line's length.
_PRINTED = re.compile(rb"\{'[^{}\n]*\}")
_PAIR = re.compile(rb"'(\w+)': '?([-+\d.eEinfatyNI]+)'?[,}]")
_ANY_PAIR = re.compile(rb"'(\w+)': [^,}\n]+")
_COLUMNS = {
    b"loss": "loss",
    b"grad_norm": "grad_norm",
    b"learning_rate": "learning_rate",
    b"num_tokens": "tokens",
    b"num_input_tokens_seen": "tokens",
    b"epoch": "epoch",
}
_OBJECT = re.compile(rb"\{[^{}]*\}")
_EVAL_LOSS = re.compile(r"eval_(?:(?P<name>.+)_)?loss")
_MAX_STEPS = re.compile(rb"\"max_steps\": *(\d+)")


class PrintedDicts:
    name = "hf-trainer-printed"
    axis = "epoch"
    stragglers = 0
    sign = re.compile(rb"\{'(?:loss|eval_\w*loss|eval_runtime)': [^{}\n]*'epoch': ")

    def __init__(self) -> None:
        self._rows = LayoutReader(b"'loss': ", _PRINTED, _layout)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def preamble(self, text: bytes, facts: Facts) -> None:
        pass

    def read(self, text: bytes, readings: Readings) -> None:
        for known in self._rows.read(text):
            readings.add_columns(known | {"iteration": known["epoch"]})
        if b"'eval_" not in text:
            return
        for match in _PRINTED.finditer(text):
            if b"'eval_" not in match[0]:
                continue
            entry = {key.decode(): number(value) for key, value in _PAIR.findall(match[0])}
            if "epoch" in entry:
                take(entry, entry["epoch"], readings)


def _layout(line: bytes) -> Layout | None:
    """Of a printed dictionary with a loss: a number for each key that is known here."""
    told, names = list[bytes](), list[str]()
    for match in _ANY_PAIR.finditer(line):
        name, value = _COLUMNS.get(match[1]), rb"[^,}\n]+"
        if name is not None and name not in names:
            names.append(name)
            value = b"'?" + NUMBER + b"'?"
        told.append(b"'" + match[1] + b"': " + value)
    pattern = rb"\{" + b", ".join(told)
    return Layout(re.compile(pattern), tuple(names)) if {"loss", "epoch"} <= set(names) else None


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
            if b'"step":' not in match[0]:
                continue
            end = match.end()
            try:
                entry = parse_json(match[0])
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
