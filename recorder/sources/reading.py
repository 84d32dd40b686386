"""An entry of ``evals`` in ``wandb_writer.py``'s file -> a model with its rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from recorder.baselines import STDERR
from recorder.helm_output import read_suite
from recorder.published_models import PublishedModel, PublishedRow
from recorder.sources import harness, opencompass, predictions
from recorder.sources.grouping import grouped
from recorder.sources.known_tasks import chance_of, higher_is_better
from recorder.sources.measurement import Measured, Measurement, SourceError, expand, series_in
from recorder.sources.other_ledger import read_other_ledger
from recorder.writer_config import Evaluation, find_path


@dataclass
class _Row:
    """What was found at one iteration, and in which file each task stands."""

    tasks: dict[str, dict[str, Measured]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tokens: float | None = None
    chance: dict[str, float] = field(default_factory=dict)


def read_model(evaluation: Evaluation, config_path: Path) -> PublishedModel:
    """Raises ``SourceError`` or ``HelmOutputError`` naming the file and what was expected."""
    if evaluation.source == "file":
        numbers = {f"{task}.{m}": v for task, metrics in evaluation.eval_result.items() for m, v in metrics.items()}
        return _of_numbers(evaluation, {evaluation.default_iteration: numbers}, "")
    if evaluation.source == "helm":
        assert evaluation.helm_output_dir is not None and evaluation.helm_suite_name is not None
        directory = find_path(evaluation.helm_output_dir, config_path)
        asked = [(benchmark.name, benchmark.metrics) for benchmark in evaluation.benchmarks]
        found = read_suite(directory, evaluation.helm_suite_name, asked, evaluation.default_iteration)
        return _of_numbers(evaluation, found, str(directory))
    assert evaluation.path is not None
    path = find_path(evaluation.path, config_path)
    measurements = [one for one in _measurements(evaluation, path) if _of_model(evaluation, one)]
    if not measurements:
        raise SourceError(f"{path}: nothing of a model like '{evaluation.model}'")
    return _of_rows(evaluation, _by_iteration(evaluation, measurements), str(path))


def _measurements(evaluation: Evaluation, path: Path) -> list[Measurement]:
    if evaluation.source == "ledger":
        return read_other_ledger(path, model=evaluation.model)
    if evaluation.source == "lm_eval":
        files = expand(path, harness.PATTERNS[:1] if _has(path) else harness.PATTERNS[1:])
        series = list(series_in(files).values())
        if len(series) > 1:
            raise SourceError(
                f"{path}: files of several series, {series[0].name} and {series[1].name}; expected one model and one "
                f"number of shots: name the files by a pattern, like '{path}/*{_ending(series[0])}'"
            )
        return [one for file in files for one in harness.read_harness(file)]
    if evaluation.source == "predictions":
        return predictions.read_predictions(expand(path, predictions.PATTERNS))
    pattern = evaluation.model or "*"
    files = expand(path, opencompass.PATTERNS)
    return [one for file in files for one in opencompass.read_summary(file, model=pattern, percent=evaluation.percent)]


def _ending(file: Path) -> str:
    """``1b_step1000.json`` -> ``1b_step*.json``"""
    return re.sub(r"\d+(?=\D*$)", "*", file.name)


def _has(path: Path) -> bool:
    """Files named as lm-evaluation-harness names them: then others in the directory are none of its results."""
    return path.is_dir() and next(path.rglob(harness.PATTERNS[0]), None) is not None


def _of_model(evaluation: Evaluation, one: Measurement) -> bool:
    return evaluation.source != "lm_eval" or evaluation.model is None or fnmatchcase(one.label, evaluation.model)


def _by_iteration(evaluation: Evaluation, measurements: Sequence[Measurement]) -> dict[int, _Row]:
    """Files of one iteration are put together. A task that two of them measured, differently, is an error."""
    rows: dict[int, _Row] = {}
    for one in measurements:
        iteration = evaluation.default_iteration if one.iteration is None else one.iteration
        if evaluation.iterations and iteration not in evaluation.iterations:
            continue
        row = rows.setdefault(iteration, _Row())
        row.tokens = one.tokens if one.tokens is not None else row.tokens
        row.chance |= one.chance
        for task, metrics in grouped(one, evaluation.groups).items():
            other = row.tasks.get(task)
            if other is not None and other != metrics:
                name = one.path.name if one.path != row.files[task] else f"{one.path.name}, {one.label}"
                raise SourceError(
                    f"{one.path.parent}: two results of {task} at iteration {iteration}: {row.files[task].name} and "
                    f"{name}; expected one model and one number of shots: name the files by a pattern in 'path', "
                    "the model in 'model', or the iteration in their names (step1000, iter_0001000)"
                )
            row.tasks[task], row.files[task] = metrics, one.path
    missing = sorted(set(evaluation.iterations) - rows.keys())
    if missing:
        known = ", ".join(map(str, sorted({one.iteration or evaluation.default_iteration for one in measurements})))
        raise SourceError(f"{evaluation.path}: iterations: there is no {missing[0]}; there are {known}")
    return rows


def _of_rows(evaluation: Evaluation, rows: dict[int, _Row], source: str) -> PublishedModel:
    made, chance, lower = [], {}, set()
    for iteration, row in sorted(rows.items()):
        taken = {
            (task, metric): number
            for task, metrics in row.tasks.items()
            for metric, number in metrics.items()
            if not evaluation.metrics or any(fnmatchcase(f"{task}.{metric}", one) for one in evaluation.metrics)
        }
        for (task, metric), number in taken.items():
            level = chance_of(task, metric, {**evaluation.chance, **row.chance})
            if level is not None:
                chance[_name(evaluation, f"{task}.{metric}")] = level
            if not number.higher_is_better:
                lower.add(_name(evaluation, f"{task}.{metric}"))
        named = {_name(evaluation, f"{task}.{metric}"): number for (task, metric), number in taken.items()}
        made.append(
            PublishedRow(
                iteration,
                _tokens(evaluation, iteration) if row.tokens is None else row.tokens,
                {key: one.value for key, one in named.items()},
                {key: one.stderr for key, one in named.items() if one.stderr is not None},
                {key: one.n for key, one in named.items() if one.n},
                {key: dict(one.items) for key, one in named.items() if one.items},
            )
        )
    if not any(row.values for row in made):
        if not evaluation.metrics:
            raise SourceError(f"{source}: there is no number in it; expected tasks with metrics")
        wanted = ", ".join(evaluation.metrics)
        raise SourceError(f"{source}: no metric is like {wanted}; expected patterns of <task>.<metric>")
    return PublishedModel(evaluation.model_name, source, tuple(made), chance, tuple(sorted(lower)))


def _name(evaluation: Evaluation, key: str) -> str:
    """What the source calls ``key`` goes by the name that the configuration gives it, or its task."""
    task, _, metric = key.rpartition(".")
    return evaluation.names.get(key) or (f"{evaluation.names[task]}.{metric}" if task in evaluation.names else key)


def _of_numbers(evaluation: Evaluation, by_iteration: dict[int, dict[str, float]], source: str) -> PublishedModel:
    rows: list[PublishedRow] = []
    chance: dict[str, float] = {}
    for iteration, numbers in sorted(by_iteration.items()):
        values = {key: value for key, value in numbers.items() if not key.endswith(STDERR)}
        stderrs = {key.removesuffix(STDERR): value for key, value in numbers.items() if key.endswith(STDERR)}
        rows.append(PublishedRow(iteration, _tokens(evaluation, iteration), values, stderrs))
        for key in values:
            level = chance_of(key.rpartition(".")[0], key.rpartition(".")[2], evaluation.chance)
            chance |= {} if level is None else {key: level}
    keys = sorted({key for row in rows for key in row.values})
    lower = tuple(key for key in keys if not higher_is_better(key.rpartition(".")[2]))
    return PublishedModel(evaluation.model_name, source, tuple(rows), chance, lower)


def _tokens(evaluation: Evaluation, iteration: int) -> float | None:
    if evaluation.token_num is not None or evaluation.token_per_iteration is None:
        return evaluation.token_num
    return iteration * evaluation.token_per_iteration
