"""A training curve of any length in bounded memory: bins of neighbouring rows, merged in pairs when there are too many."""

from __future__ import annotations

from typing import Any

import numpy

from autoeval.diagnosis.readings import COLUMN

MOST_BINS = 4096

# How the bins of each quantity are joined: the ufunc, or "last" for the newest value that is known.
_JOIN: dict[str, Any] = {
    "first": numpy.minimum,  # iterations
    "last": numpy.maximum,
    "rows": numpy.add,
    "losses": numpy.add,  # finite ones
    "loss_sum": numpy.add,
    "loss_min": numpy.fmin,
    "loss_max": numpy.fmax,
    "not_finite": numpy.add,  # losses that were NaN or infinite in the log
    "grad_norm_max": numpy.fmax,
    "grad_norm_min": numpy.fmin,
    "learning_rate": "last",
    "loss_scale": "last",
    "rate_sum": numpy.add,
    "rates": numpy.add,
    "skipped": numpy.add,
    "nan": numpy.add,
    "tokens": numpy.fmax,
    "epoch": numpy.fmax,
}


class Curve:
    """Bins in the order of iterations. ``bins[name]`` is an array with a value a bin; see ``_JOIN`` for the names."""

    def __init__(self) -> None:
        self.bins: dict[str, numpy.ndarray] = {name: numpy.empty(0) for name in _JOIN}

    def __len__(self) -> int:
        return len(self.bins["first"])

    @property
    def loss(self) -> numpy.ndarray:
        """Mean loss a bin, NaN where none was finite."""
        with numpy.errstate(invalid="ignore", divide="ignore"):
            return self.bins["loss_sum"] / self.bins["losses"]

    @property
    def rate(self) -> numpy.ndarray:
        with numpy.errstate(invalid="ignore", divide="ignore"):
            return self.bins["rate_sum"] / self.bins["rates"]

    def add(self, rows: numpy.ndarray) -> None:
        """Append ``rows`` (rows, columns), later ones than all before."""
        new = {name: numpy.zeros(len(rows)) for name in _JOIN}
        loss, rate = rows[:, COLUMN["loss"]], rows[:, COLUMN["rate"]]
        good, timed = numpy.isfinite(loss), numpy.isfinite(rate)
        new["first"] = new["last"] = rows[:, 0]
        new["rows"] += 1
        new["losses"], new["loss_sum"] = good.astype(float), numpy.where(good, loss, 0.0)
        new["loss_min"] = new["loss_max"] = numpy.where(good, loss, numpy.nan)
        new["not_finite"] = numpy.isinf(loss).astype(float)
        new["grad_norm_max"] = new["grad_norm_min"] = rows[:, COLUMN["grad_norm"]]
        new["rate_sum"], new["rates"] = numpy.where(timed, rate, 0.0), timed.astype(float)
        for name in ("learning_rate", "loss_scale", "tokens", "epoch"):
            new[name] = rows[:, COLUMN[name]]
        for name in ("skipped", "nan"):
            new[name] = numpy.nan_to_num(rows[:, COLUMN[name]])
        self.bins = {name: numpy.concatenate([old, new[name]]) for name, old in self.bins.items()}
        while len(self) > MOST_BINS:
            self._merge()

    def cut(self, iteration: float) -> None:
        """Forget all bins that reach ``iteration`` or beyond: training goes on from before it."""
        keep = self.bins["last"] < iteration
        self.bins = {name: values[keep] for name, values in self.bins.items()}

    def _merge(self) -> None:
        # As many neighbours to a bin as it takes, at once: a long piece of a log brings many rows.
        size = max(2, -(-len(self) // MOST_BINS))
        starts = numpy.arange(0, len(self), size)
        ends = numpy.append(starts[1:], len(self)) - 1
        self.bins = {
            name: values[ends] if _JOIN[name] == "last" else _JOIN[name].reduceat(values, starts)
            for name, values in self.bins.items()
        }

    def state(self) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in self.bins.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        self.bins = {name: numpy.array(state[name], dtype=numpy.float64) for name in _JOIN}
