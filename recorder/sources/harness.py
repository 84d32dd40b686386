"""lm-evaluation-harness: ``results_*.json`` of today (0.4, checked with 0.4.13), and what was published with older ones.

Known shapes: one file an evaluation, ``{"results": {task: {metric: number, metric_stderr: number}}, "versions": …}``
(EleutherAI's Pythia, one file a step; in 0.4 the metric's name ends in ",<filter>"); the same with a time stamp between
task and metrics (BigScience's ``bslmeval.json``); and whole courses, ``{"tokens": […], "checkpoints": […], "results":
{task: {metric: […]}}}`` (BigScience's ``*_agg.json``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recorder.sources.known_tasks import higher_is_better
from recorder.sources.measurement import Measured, Measurement, SourceError, iteration_in

PATTERNS = ("results*.json", "*.json")
STDERR = "_stderr"


def read_harness(path: Path) -> list[Measurement]:
    """One measurement, or one for each checkpoint of a course. Raises ``SourceError`` naming file and key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise SourceError(f'{path}: expected lm-evaluation-harness\'s {{"results": {{task: {{metric: number}}}}}}')
    if "checkpoints" in content:
        return _course(path, content)
    tasks = {}
    for task, metrics in content["results"].items():
        tasks[task] = _task(path, task, _newest(path, task, metrics), content)
    groups = content.get("group_subtasks") or {}
    averaged = {name for name in content.get("groups") or {} if name in tasks}
    label, named = _model(content)
    return [
        Measurement(
            path,
            iteration_in(path.name, named, path.parent.name),
            {task: metrics for task, metrics in tasks.items() if metrics},
            groups={name: tuple(groups.get(name, ())) for name in sorted(averaged)},
            label=label,
        )
    ]


def _model(content: Mapping[str, Any]) -> tuple[str, str]:
    """(name, all that the file says of the model): 0.4.13 writes the arguments as a mapping, older ones as text."""
    config = content.get("config") or {}
    arguments = config.get("model_args") or ""
    text = json.dumps(arguments) if not isinstance(arguments, str) else arguments
    return str(content.get("model_name") or ""), f"{content.get('model_name') or ''} {text}"


def _newest(path: Path, task: str, metrics: Any) -> Mapping[str, Any]:
    """Without the time stamps: of several runs of a task the one that was started last."""
    if not isinstance(metrics, dict):
        raise SourceError(f"{path}: results.{task}: expected a mapping of metrics, found {metrics!r}")
    if metrics and all(isinstance(value, dict) for value in metrics.values()) and all(k[:2] == "20" for k in metrics):
        newest: Mapping[str, Any] = metrics[max(metrics)]
        return newest
    return metrics


def _task(path: Path, task: str, metrics: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Measured]:
    said = (content.get("higher_is_better") or {}).get(task) or {}
    counted = ((content.get("n-samples") or {}).get(task) or {}).get("effective") or metrics.get("sample_len") or 0
    found = {}
    for key, value in metrics.items():
        metric, comma, filtered = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or metric.endswith(STDERR):
            continue  # a name, a note ("N/A"), a standard error
        if key in ("sample_len", "sample_count"):
            continue
        where = f"{path}: results.{task}.{key}"
        name = metric if filtered in ("", "none") else key
        stderr = metrics.get(f"{metric}{STDERR}{comma}{filtered}")
        stderr = _number(f"{where} (standard error)", stderr) if isinstance(stderr, int | float) else None
        better = said.get(metric)
        found[name] = measured(
            _number(where, value), stderr, int(counted), higher_is_better(metric) if better is None else bool(better)
        )
    return found


def _course(path: Path, content: Mapping[str, Any]) -> list[Measurement]:
    iterations, tokens = content["checkpoints"], content.get("tokens") or [None] * len(content["checkpoints"])
    if not isinstance(iterations, list) or len(tokens) != len(iterations):
        raise SourceError(f"{path}: expected as many tokens as checkpoints")
    rows: list[dict[str, dict[str, Measured]]] = [{} for _ in iterations]
    for task, metrics in content["results"].items():
        for metric, values in metrics.items():
            if metric.endswith(STDERR):
                continue
            errors = metrics.get(f"{metric}{STDERR}") or [None] * len(values)
            if len(values) != len(iterations) or len(errors) != len(values):
                raise SourceError(f"{path}: results.{task}.{metric}: expected {len(iterations)} numbers")
            for row, value, error in zip(rows, values, errors, strict=True):
                if value is not None:
                    number = _number(f"{path}: results.{task}.{metric}", value)
                    row.setdefault(task, {})[metric] = measured(number, error, 0, higher_is_better(metric))
    return [
        Measurement(path, int(iteration), row, None if seen is None else seen / 1e9)
        for iteration, seen, row in zip(iterations, tokens, rows, strict=True)
    ]


def measured(value: float, stderr: float | None, n: int, better_high: bool) -> Measured:
    """``n``, where nobody says, from a share's standard error: SE^2 = p (1 - p) / (n - 1), as the harness computes it."""
    if not n and stderr and 0.0 < value < 1.0:
        n = round(value * (1 - value) / stderr**2) + 1
    return Measured(value, stderr, n, better_high)


def _number(where: str, value: Any) -> float:
    if not math.isfinite(value):
        raise SourceError(f"{where}: expected a finite number, found {value!r}")
    return float(value)
