"""What evaluating costs: tokens, seconds and memory between two moments.

``prompt_tokens``     as if every request were computed by itself
``unique_tokens``     distinct tokens of the requests' tries: what had to be computed
``computed_tokens``   what was computed, padding and repetitions included
``generated_tokens``
``seconds``           of the model's answers
``wall_seconds``      of all, prompts and metrics included
``device_seconds``    ``wall_seconds`` times the devices that the model holds
``tokens_per_second`` ``computed_tokens`` / ``seconds``
``peak_memory_bytes`` the most that was held: on a GPU by tensors, else by the process
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from autoeval.models.peak import forget_peak, peak_bytes

_COUNTED = ("prompt_tokens", "unique_tokens", "computed_tokens", "generated_tokens", "seconds")


class Meter:
    """Runs from its construction on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = _counters(model)
        forget_peak(model)
        self._started = time.perf_counter()

    def read(self) -> Measured:
        counted = {name: value - self._before.get(name, 0) for name, value in _counters(self._model).items()}
        return Measured(counted, time.perf_counter() - self._started, _devices(self._model), peak_bytes(self._model))


@dataclass(frozen=True)
class Measured:
    """What a meter has read."""

    counted: dict[str, float]
    wall_seconds: float
    devices: int
    peak_bytes: float

    def cost(self, share: float = 1.0, own_seconds: float = 0.0) -> dict[str, float]:
        """Of a task that is to blame for ``share`` of it and has taken ``own_seconds`` of wall time beside it."""
        cost = {name: round(value * share, 6) for name, value in self.counted.items()}
        wall = self.wall_seconds * share + own_seconds
        rate = self.counted["computed_tokens"] / self.counted["seconds"] if self.counted["seconds"] > 0 else 0.0
        return {
            **cost,
            "wall_seconds": round(wall, 6),
            "device_seconds": round(wall * self.devices, 6),
            "tokens_per_second": round(rate, 3),
            "peak_memory_bytes": self.peak_bytes,
        }


def _counters(model: Any) -> dict[str, float]:
    plain = {name: value for name, value in dataclasses.asdict(model.cost).items() if name != "extra"}
    return {**dict.fromkeys(_COUNTED, 0), **plain, **model.cost.extra}


def _devices(model: Any) -> int:
    if (count := getattr(model, "device_count", None)) is not None:  # of several processes
        return int(count)
    module = getattr(model, "model", None)
    return len({parameter.device for parameter in module.parameters()}) if module is not None else 1
