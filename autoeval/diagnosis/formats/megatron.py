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
from typing import TYPE_CHECKING, Any

from autoeval.diagnosis.formats.layouts import NUMBER, Layout, LayoutReader
from autoeval.diagnosis.readings import Facts, Readings, Validation

if TYPE_CHECKING:
    import numpy

# How far a pattern looks is limited: without, it takes the square of a long line's length.
_VALIDATION = re.compile(
    rb"validation(?P<name>[-\w]{0,80}) loss at iteration (?P<iteration>\d+)(?: on (?P<set>\w+) set)?\s*\|"
    rb"[^\n]{0,400}?lm[ _-]loss value: (?P<loss>[-+0-9.eE]+|nan|inf)"
)
_ROW = re.compile(rb"iteration +\d+/ *\d+ \|[^\n]*")
MOST_PARTS = 200  # of a line; Megatron writes about fifteen
_MARK = b"elapsed time per iteration ("  # (ms), and (s) in BigScience's fork of Megatron-DeepSpeed
_KEYS = {
    b"consumed samples": "samples",
    b"consumed tokens": "tokens",
    b"elapsed time per iteration (ms)": "milliseconds",
    b"elapsed time per iteration (s)": "seconds",
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
    sign = re.compile(
        rb"iteration +\d+/ *\d+ \| .{0,1000}elapsed time per iteration|validation[-\w]{0,80} loss at iteration \d+"
    )

    def __init__(self) -> None:
        self._rows = LayoutReader(_MARK, _ROW, _layout)
        self._shards: dict[bytes, float] = {}
        self.sequence_length: float | None = None

    def state(self) -> dict[str, Any]:
        return {"sequence_length": self.sequence_length}

    def restore(self, state: dict[str, Any]) -> None:
        self.sequence_length = state["sequence_length"]

    def read(self, text: bytes, readings: Readings) -> None:
        readings.validations += validations(text)
        for known in self._rows.read(text):
            self._take(known, readings)

    def _take(self, known: dict[str, numpy.ndarray], readings: Readings) -> None:
        import numpy

        if "milliseconds" in known:
            known["seconds"] = known["milliseconds"] / 1000.0
        if "seconds" in known:
            with numpy.errstate(divide="ignore", invalid="ignore"):
                known["rate"] = known.get("batch", 1.0) / known["seconds"]
        if "samples" in known and "tokens" not in known and self.sequence_length:
            known["tokens"] = known["samples"] * self.sequence_length
        readings.add_columns(known)
        readings.facts.total = float(known["total"][-1])

    def preamble(self, text: bytes, facts: Facts) -> None:
        """Sizes that are printed before the first iteration; of the shards' parameters those that are printed."""
        if match := _LENGTH.search(text):
            facts.sequence_length = self.sequence_length = float(match[1])
        self._shards |= {match[1]: float(match[2]) for match in _SHARD.finditer(text)}
        if match := _PARAMETERS.search(text):
            facts.parameters = float(match[1]) * 1e9
        elif self._shards:
            facts.parameters = sum(self._shards.values())


def _layout(line: bytes) -> Layout | None:
    """A number for the iteration, the last iteration, and each known key; the others may be anything."""
    if line.count(b"|") > MOST_PARTS:
        return None
    names, told = ["iteration", "total"], []
    for part in line.split(b"|")[1:]:
        key, colon, _ = part.partition(b":")
        name = _KEYS.get(key.strip())
        if colon and name is not None and name not in names:
            names.append(name)
            told.append(b" *" + re.escape(key.strip()) + b": *" + NUMBER + b" *")
        else:
            told.append(rb"[^|\n]*")
    pattern = re.compile(rb"iteration +(\d+)/ *(\d+) *\|" + rb"\|".join(told))
    return Layout(pattern, tuple(names))
