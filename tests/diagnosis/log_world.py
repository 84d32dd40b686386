"""Training logs made by construction, in the words of each trainer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy

from autoeval.diagnosis.report import diagnose
from autoeval.diagnosis.training_log import TrainingLog


def falling(
    count: int = 1000, start: float = 11.0, end: float = 3.0, noise: float = 0.02, seed: int = 0
) -> numpy.ndarray:
    """A healthy curve: a power law with noise, shape (count,)."""
    x = numpy.arange(1, count + 1)
    curve = (x**-0.5 - count**-0.5) / (1 - count**-0.5)
    return end + (start - end) * curve + numpy.random.default_rng(seed).normal(0, noise, count)


def megatron_line(
    iteration: int,
    loss: float,
    *,
    total: int = 1000,
    lr: float = 3e-4,
    grad_norm: float = 0.5,
    milliseconds: float = 1500.0,
    scale: float = 1.0,
    skipped: int = 0,
    nan: int = 0,
    prefix: str = "",
) -> str:
    told = "" if skipped and numpy.isnan(loss) and not nan else f" lm loss: {loss:.6E} |"
    return (
        f"{prefix} [2026-08-18 03:54:59.854456] iteration {iteration:8d}/{total:8d} | consumed samples: {iteration * 288:12d} |"
        f" elapsed time per iteration (ms): {milliseconds:.1f} | throughput per GPU (TFLOP/s/GPU): 82.0 |"
        f" learning rate: {lr:.6E} | global batch size:   288 |{told} loss scale: {scale:.1f} |"
        f" grad norm: {grad_norm:.3f} | number of skipped iterations: {skipped:3d} | number of nan iterations: {nan:3d} |"
    )


def megatron(losses: Sequence[float], first: int = 1, **more: object) -> list[str]:
    return [megatron_line(first + i, float(loss), **more) for i, loss in enumerate(losses)]  # type: ignore[arg-type]


def validation(iteration: int, loss: float, name: str = "") -> str:
    return f" validation{name} loss at iteration {iteration} | lm loss value: {loss:.6E} | lm loss PPL: 1.0E+01 | "


def with_validation(lines: list[str], points: Iterable[tuple[int, float]], name: str = "") -> list[str]:
    """Validation lines after the training lines of their iterations; ``lines`` begin with iteration 1."""
    by_iteration = dict(points)
    told = []
    for place, line in enumerate(lines, 1):
        told.append(line)
        if place in by_iteration:
            told.append(validation(place, by_iteration[place], name))
    return told


def write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> TrainingLog:
    log = TrainingLog(path)
    log.read()
    return log


def diagnosis(path: Path, lines: Iterable[str], language: str = "en") -> dict:
    """The diagnosis of a log with ``lines``, as of the moment it was written."""
    log = read(write(path, lines))
    found = diagnose(log, language, now=path.stat().st_mtime)  # type: ignore[arg-type]
    json.dumps(found)
    return found


def levels(found: dict) -> tuple[str, str, str]:
    risks = found["current_risks"]
    return risks["overfitting"], risks["underfitting"], risks["catastrophic_forgetting"]
