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
from recorder.untrusted import parse_json

PATTERNS = ("results*.json", "*.json")
STDERR = "_stderr"


def read_harness(path: Path) -> list[Measurement]:
    """One measurement, or one for each checkpoint of a course. Raises ``SourceError`` naming file and key."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise SourceError(f'{path}: expected lm-evaluation-harness\'s {{"results": {{task: {{metric: number}}}}}}')
    if "checkpoints" in content:
        return _course(path, content)
    tasks = {}
    for task, metrics in content["results"].items():
        tasks[task] = _task(path, task, _newest(path, task, metrics), content)
    groups = _mapping(f"{path}: group_subtasks", content.get("group_subtasks"))
    averaged = {name for name in _mapping(f"{path}: groups", content.get("groups")) if name in tasks}
    label, named = _model(path, content)
    return [
        Measurement(
            path,
            iteration_in(path.name, named, path.parent.name),
            {task: metrics for task, metrics in tasks.items() if metrics},
            groups={name: tuple(groups.get(name, ())) for name in sorted(averaged)},
            label=label,
        )
    ]


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value or {}, dict):
        raise SourceError(f"{where}: expected a mapping, found {value!r}")
    return value or {}


def _model(path: Path, content: Mapping[str, Any]) -> tuple[str, str]:
    """(name, all that the file says of the model): 0.4.13 writes the arguments as a mapping, older ones as text."""
    arguments = _mapping(f"{path}: config", content.get("config")).get("model_args") or ""
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
    said, samples = (_of_task(path, task, content, key) for key in ("higher_is_better", "n-samples"))
    counted = samples.get("effective") or metrics.get("sample_len") or 0
    n = int(_number(f"{path}: number of items of {task}", counted))
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
        stderr = _number(f"{where} (standard error)", stderr) if isinstance(stderr, int | float) else None  # "N/A"
        better = said.get(metric)
        found[name] = measured(
            _number(where, value), stderr, n, higher_is_better(metric) if better is None else bool(better)
        )
    return found


def _of_task(path: Path, task: str, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _mapping(f"{path}: {key}.{task}", _mapping(f"{path}: {key}", content.get(key)).get(task))


def _course(path: Path, content: Mapping[str, Any]) -> list[Measurement]:
    iterations = _list(f"{path}: checkpoints", content["checkpoints"], None)
    tokens = _list(f"{path}: tokens", content.get("tokens") or [None] * len(iterations), len(iterations))
    rows: list[dict[str, dict[str, Measured]]] = [{} for _ in iterations]
    for task in content["results"]:
        metrics = _mapping(f"{path}: results.{task}", content["results"][task])
        for metric, values in metrics.items():
            if metric.endswith(STDERR):
                continue
            where = f"{path}: results.{task}.{metric}"
            values = _list(where, values, len(iterations))
            errors = _list(where + STDERR, metrics.get(metric + STDERR) or [None] * len(values), len(values))
            for row, value, error in zip(rows, values, errors, strict=True):
                if value is not None:
                    error = None if error is None else _number(where + STDERR, error)
                    row.setdefault(task, {})[metric] = measured(
                        _number(where, value), error, 0, higher_is_better(metric)
                    )
    return [
        Measurement(
            path,
            int(_number(f"{path}: checkpoints", iteration)),
            row,
            None if seen is None else _number(f"{path}: tokens", seen) / 1e9,
        )
        for iteration, seen, row in zip(iterations, tokens, rows, strict=True)
    ]


def _list(where: str, value: Any, length: int | None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise SourceError(f"{where}: expected {'a list' if length is None else f'{length} numbers'}")
    return value


def measured(value: float, stderr: float | None, n: int, better_high: bool) -> Measured:
    """``n``, where nobody says, from a share's standard error: SE^2 = p (1 - p) / (n - 1), as the harness computes it."""
    if not n and stderr and 0.0 < value < 1.0:
        n = round(value * (1 - value) / stderr**2) + 1
    return Measured(value, stderr, n, better_high)


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f"{where}: expected a finite number, found {value!r}")
    return float(value)
