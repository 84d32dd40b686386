"""OpenCompass's ``summary_*.csv``: dataset, version, metric, mode, then a column for each model.

Checked with files that opencompass 0.5.4 wrote. Its scores are percentages with two digits, "-" where there is none;
here shares of 1, unless ``percent: false``. There are no standard errors in it.
"""

from __future__ import annotations

import csv
import math
from fnmatch import fnmatchcase
from pathlib import Path

from recorder.sources.known_tasks import higher_is_better
from recorder.sources.measurement import Measured, Measurement, SourceError, iteration_in

PATTERNS = ("summary_*.csv",)
HEADER = ["dataset", "version", "metric", "mode"]


def read_summary(path: Path, *, model: str = "*", percent: bool = True) -> list[Measurement]:
    """A measurement for each column whose name is like ``model`` (a pattern). Raises ``SourceError``."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV: {error}") from error
    if not lines or lines[0][:4] != HEADER:
        found = ",".join(lines[0][:4]) if lines else "nothing"
        raise SourceError(f"{path}: line 1: expected {','.join(HEADER)},<models>, found {found}")
    columns = [(place, name) for place, name in enumerate(lines[0]) if place >= 4 and fnmatchcase(name, model)]
    if not columns:
        raise SourceError(f"{path}: no model is like '{model}'; it has {', '.join(lines[0][4:]) or 'none'}")
    return [
        Measurement(path, iteration_in(name, path.parent.name), _column(path, lines, place, percent), label=name)
        for place, name in columns
    ]


def _column(path: Path, lines: list[list[str]], place: int, percent: bool) -> dict[str, dict[str, Measured]]:
    tasks: dict[str, dict[str, Measured]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(lines[0]):
            raise SourceError(f"{path}: line {number}: expected {len(lines[0])} cells, found {len(line)}")
        task, _, metric, _, cell = *line[:4], line[place]
        if cell == "-" or metric == "-":  # not measured; or the heading of a part of the table
            continue
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SourceError(f"{path}: line {number}: {task}: {metric}: expected a number or -, found {cell!r}")
        high = higher_is_better(metric)
        tasks.setdefault(task, {})[metric] = Measured(value / 100 if percent and high else value, None, 0, high)
    return tasks
