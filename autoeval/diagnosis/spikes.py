"""Spikes of a series, found while it is read: robust z-scores against what came just before.

Source of the measure: the spike score of OLMo's training (six standard deviations, windows of 128 steps); median and
MAD instead of mean and standard deviation, so that one spike does not hide the next.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy

WINDOW = 128  # rows of history that a row is judged by
STEP = 32  # rows judged by the same history; the least history, too
JOINED = 16  # spikes at most so many rows apart are one episode
KEPT = 100  # episodes remembered, the newest


@dataclass
class Episode:
    """``baseline`` is the median before; ``z`` the largest robust z-score."""

    first: float
    last: float
    row: int  # the last spiking row, counted from the start of the log
    peak: float
    baseline: float
    z: float


class SpikeDetector:
    """``z`` and ``ratio`` (to the median before) both have to be reached."""

    def __init__(self, z: float, ratio: float) -> None:
        self.z, self.ratio = z, ratio
        self.episodes: list[Episode] = []
        self.count = 0  # of episodes, also of those no longer kept
        self.judged = 0  # rows
        self._iterations = numpy.empty(0)
        self._values = numpy.empty(0)
        self._history = 0  # how many of the values at hand have been judged

    def add(self, iterations: numpy.ndarray, values: numpy.ndarray) -> None:
        """Take the next part of the series; values that are not finite are left out."""
        good = numpy.isfinite(values)
        self._iterations = numpy.concatenate([self._iterations, iterations[good]])
        self._values = numpy.concatenate([self._values, values[good]])
        while self._history < WINDOW and len(self._values) >= self._history + STEP:
            if self._history:
                self._judge(1, self._history)
            self._history += STEP
        blocks = (len(self._values) - self._history) // STEP
        if blocks > 0:
            self._judge(blocks, WINDOW)
            drop = blocks * STEP
            self._iterations, self._values = self._iterations[drop:], self._values[drop:]

    def finish(self) -> None:
        """Judge what is left, less than a step, for nothing will follow."""
        left = len(self._values) - self._history
        if left > 0 and self._history:
            self._judge(1, self._history, left)

    def cut(self, iteration: float) -> None:
        """Training goes on from before ``iteration``: what was seen beyond did not last."""
        self.episodes = [one for one in self.episodes if one.first < iteration]
        keep = self._iterations < iteration
        self._iterations, self._values = self._iterations[keep], self._values[keep]
        self._history = min(self._history, len(self._values) // STEP * STEP)

    def _judge(self, blocks: int, history: int, size: int = STEP) -> None:
        windows = numpy.lib.stride_tricks.sliding_window_view(self._values[: (blocks - 1) * STEP + history], history)
        windows = windows[::STEP]
        median = numpy.median(windows, axis=1, keepdims=True)
        spread = 1.4826 * numpy.median(numpy.abs(windows - median), axis=1, keepdims=True)
        spread = numpy.maximum(spread, 1e-3 * numpy.abs(median) + 1e-12)
        end = history + (blocks - 1) * STEP + size
        new = self._values[history:end].reshape(blocks, size)
        z = (new - median) / spread
        found = (z >= self.z) & (new >= self.ratio * median)
        for block, place in zip(*numpy.nonzero(found), strict=True):
            at = int(block) * STEP + int(place)
            self._note(
                float(self._iterations[history + at]),
                self.judged + at,
                float(new[block, place]),
                float(median[block, 0]),
                float(z[block, place]),
            )
        self.judged += (blocks - 1) * STEP + size

    def _note(self, iteration: float, row: int, value: float, baseline: float, z: float) -> None:
        if self.episodes and row - self.episodes[-1].row <= JOINED:
            last = self.episodes[-1]
            last.last, last.row, last.z, last.peak = iteration, row, max(last.z, z), max(last.peak, value)
            return
        self.count += 1
        self.episodes = [*self.episodes[-KEPT + 1 :], Episode(iteration, iteration, row, value, baseline, z)]

    def state(self) -> dict[str, Any]:
        return {
            "episodes": [asdict(one) for one in self.episodes],
            "count": self.count,
            "judged": self.judged,
            "iterations": self._iterations.tolist(),
            "values": self._values.tolist(),
            "history": self._history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.episodes = [Episode(**one) for one in state["episodes"]]
        self.count, self.judged, self._history = state["count"], state["judged"], state["history"]
        self._iterations, self._values = numpy.array(state["iterations"]), numpy.array(state["values"])
