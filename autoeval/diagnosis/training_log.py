"""A training log as it grows: recognised, read from where it was left, kept as a curve of bounded size."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from autoeval.diagnosis.curve import Curve
from autoeval.diagnosis.formats import FORMATS, Format, recognise
from autoeval.diagnosis.readings import COLUMN, Facts, Readings
from autoeval.diagnosis.spikes import SpikeDetector
from autoeval.diagnosis.stream import Position, read_new

logger = logging.getLogger(__name__)

STATE_VERSION = 1
MOST_VALIDATIONS = 4096  # a set
MOST_REWINDS = 100
_BROKEN = b"Traceback (most recent call last)"


class UnknownLogError(ValueError):
    """No line of a known kind of training log, or none that says anything; the message names the file."""


class TrainingLog:
    """What is known of one log. ``read`` brings it up to date; ``state`` is JSON from which ``restored`` goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format: Format | None = None
        self.facts = Facts()
        self.curve = Curve()
        self.validations: dict[str, dict[float, float]] = {}
        self.loss_spikes = SpikeDetector(z=6.0, ratio=1.1)
        self.grad_norm_spikes = SpikeDetector(z=10.0, ratio=3.0)
        self.rewinds: list[tuple[float, float]] = []  # (from, to) iterations, when training was resumed further back
        self.broken_at: float | None = None  # where a Python traceback was printed and nothing came after it
        self._position = Position()
        self._last = -math.inf
        self._interval = 0.0

    @property
    def axis(self) -> str:
        return self.format.axis if self.format else "iteration"

    @property
    def _slack(self) -> float:
        return self.format.stragglers * self._interval if self.format else 0.0

    @property
    def last(self) -> float:
        """The last iteration that the log tells of."""
        newest = [max(points) for points in self.validations.values() if points]
        return max([self._last, *newest])

    def read(self, *, to_the_end: bool = True) -> bool:
        """Take in what was written since the last call; whether anything was.

        ``to_the_end`` also takes a last line without its end and judges what is waiting for more rows: for a log that
        is read once. Raises ``OSError``, and ``UnknownLogError`` with ``to_the_end`` when nothing can be told from it.
        """
        anything, beginnings = False, self._position.beginnings
        for text in read_new(self.path, self._position, to_the_end=to_the_end):
            anything = True
            if self._position.beginnings != beginnings and getattr(self.format, "rewritten", False):
                self._forget()
            beginnings = self._position.beginnings
            self._take(text)
        if to_the_end:
            if self.format is None:
                kinds = ", ".join(kind.name for kind in FORMATS)
                if not self._position.offset:
                    raise UnknownLogError(f"{self.path}: it is empty")
                raise UnknownLogError(f"{self.path}: no line of a training log that is known here ({kinds})")
            if hasattr(self.format, "flush"):
                readings = Readings(facts=self.facts)
                self.format.flush(readings)
                self._note(readings)
            if not len(self.curve) and not any(self.validations.values()):
                raise UnknownLogError(  # three times Low would say that the run is well
                    f"{self.path}: a log of the kind {self.format.name}, but without an iteration or a validation loss"
                )
            self.loss_spikes.finish()
            self.grad_norm_spikes.finish()
        return anything

    def _forget(self) -> None:
        """A file that is written anew each time tells all of it again: that is no run that was resumed."""
        position = self._position
        vars(self).update(vars(TrainingLog(self.path)))
        self._position = position

    def _take(self, text: bytes) -> None:
        if self.format is None and (kind := recognise(text)) is not None:
            self.format = kind()
            logger.info("%s: a log of the kind %s", self.path, kind.name)
        if self.format is None:
            for kind in FORMATS:  # sizes may stand in a piece before the first row
                kind().preamble(text, self.facts)
            return
        if not len(self.curve):
            self.format.preamble(text, self.facts)
        readings = Readings(facts=self.facts)
        self.format.read(text, readings)
        if readings.rows or readings.validations:
            self.broken_at = None
        self._note(readings)
        if (at := text.rfind(_BROKEN)) >= 0 and self.format.sign.search(text, at) is None:
            self.broken_at = self.last

    def _note(self, readings: Readings) -> None:
        for rows in readings.rows:
            self._add(rows[numpy.isfinite(rows[:, 0])])
        for iteration, name, loss in readings.validations:
            if not math.isfinite(iteration):
                continue
            points = self.validations.setdefault(name, {})
            points.pop(iteration, None)
            points[iteration] = loss
            if len(points) > MOST_VALIDATIONS:
                self.validations[name] = dict(list(points.items())[::2])
        if math.isfinite(self._last):  # of a run that was resumed further back, in the same piece
            self._cut_validations(self._last + self._slack + self._interval)

    def _add(self, rows: numpy.ndarray) -> None:
        if len(rows) and not self._interval:
            steps = numpy.diff(rows[:, 0])
            self._interval = float(numpy.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        while len(rows):
            iteration = rows[:, 0]
            reached = numpy.maximum.accumulate(numpy.concatenate([[self._last], iteration]))[:-1]
            back = iteration < reached - self._slack
            end = int(back.argmax()) if back.any() else len(rows)
            self._extend(rows[:end][iteration[:end] > reached[:end]])
            if end < len(rows):
                self._rewind(float(iteration[end]))
            rows = rows[end:]

    def _extend(self, rows: numpy.ndarray) -> None:
        if not len(rows):
            return
        self._last = float(rows[-1, 0])
        self.curve.add(rows)
        self.loss_spikes.add(rows[:, 0], rows[:, COLUMN["loss"]])
        self.grad_norm_spikes.add(rows[:, 0], rows[:, COLUMN["grad_norm"]])

    def _rewind(self, iteration: float) -> None:
        self.rewinds = [*self.rewinds[-MOST_REWINDS + 1 :], (self._last, iteration)]
        self.curve.cut(iteration)
        self.loss_spikes.cut(iteration)
        self.grad_norm_spikes.cut(iteration)
        self._last = float(self.curve.bins["last"][-1]) if len(self.curve) else -math.inf
        self._cut_validations(iteration)

    def _cut_validations(self, iteration: float) -> None:
        for points in self.validations.values():
            for beyond in [at for at in points if at > iteration]:
                del points[beyond]

    def state(self) -> dict[str, Any]:
        """All of it as JSON (with Python's NaN)."""
        return {
            "version": STATE_VERSION,
            "path": str(self.path),
            "position": asdict(self._position),
            "format": [self.format.name, self.format.state()] if self.format else None,
            "facts": asdict(self.facts),
            "curve": self.curve.state(),
            "validations": {name: list(points.items()) for name, points in self.validations.items()},
            "loss_spikes": self.loss_spikes.state(),
            "grad_norm_spikes": self.grad_norm_spikes.state(),
            "rewinds": self.rewinds,
            "broken_at": self.broken_at,
            "last": self._last,
            "interval": self._interval,
        }

    @classmethod
    def restored(cls, path: Path, state: dict[str, Any]) -> TrainingLog:
        """The log as it was when ``state`` was taken. Raises ``ValueError`` when the state is of another log."""
        if state.get("version") != STATE_VERSION or state.get("path") != str(path):
            raise ValueError(f"the state is not of {path}")
        log = cls(path)
        log._position = Position(**state["position"])
        if state["format"]:
            name, remembered = state["format"]
            log.format = next(kind for kind in FORMATS if kind.name == name)()
            log.format.restore(remembered)
        log.facts = Facts(**state["facts"])
        log.curve.restore(state["curve"])
        log.validations = {name: dict(map(tuple, points)) for name, points in state["validations"].items()}
        log.loss_spikes.restore(state["loss_spikes"])
        log.grad_norm_spikes.restore(state["grad_norm_spikes"])
        log.rewinds = [(start, end) for start, end in state["rewinds"]]
        log.broken_at, log._last, log._interval = state["broken_at"], state["last"], state["interval"]
        return log
