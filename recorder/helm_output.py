"""Reading the directories that ``helm-run`` leaves, for ``wandb_writer.py`` (``source: helm``).

``<helm_output_dir>/runs/<suite>/<run>/stats.json`` is a list of statistics named by metric, split and, where there is
one, perturbation. The benchmark's value is the mean over its runs (every MMLU subject weighs the same) on the main
split without perturbation.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorder.helm_names import benchmark_name, helm_metric

MAIN_SPLITS = ("test", "valid")  # the first that a run has a value on

_ITERATION = re.compile(r"iter(?:ation)?[_=-]?0*(\d+)")


class HelmOutputError(ValueError):
    """HELM's output cannot be used; the message names the file and what was expected."""


def read_suite(
    output_dir: Path, suite: str, benchmarks: Sequence[tuple[str, Sequence[str]]], default_iteration: int
) -> dict[int, dict[str, float]]:
    """Iteration -> ``<benchmark>.<metric>`` -> value of the (name, metrics) in ``benchmarks``.

    The iteration is what follows ``iter`` in the suite's or the run's name (``iter_0002000``), else
    ``default_iteration``. Raises ``HelmOutputError`` when a benchmark has no runs, or a run no value for a metric.
    """
    directory = output_dir / "runs" / suite
    if not directory.is_dir():
        raise HelmOutputError(f"{directory}: no such directory; expected HELM's runs of the suite '{suite}'")
    collected: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for benchmark, metrics in benchmarks:
        runs = [run for run in sorted(directory.iterdir()) if benchmark in _names(run.name) and run.is_dir()]
        if not runs:
            known = ", ".join(sorted({_names(run.name)[0] for run in directory.iterdir() if run.is_dir()}))
            raise HelmOutputError(f"{directory}: no run of the benchmark '{benchmark}' (there are: {known or 'none'})")
        for run in runs:
            found = _ITERATION.search(run.name) or _ITERATION.search(suite)
            iteration = int(found.group(1)) if found else default_iteration
            for metric in metrics:
                collected[iteration][f"{benchmark}.{metric}"].append(_value(run / "stats.json", metric))
    return {
        iteration: {key: sum(values) / len(values) for key, values in of_iteration.items()}
        for iteration, of_iteration in sorted(collected.items())
    }


def _names(run_name: str) -> tuple[str, str]:
    """The benchmark of a run and its run spec: ``commonsense:dataset=hellaswag,model=x`` is of hellaswag."""
    spec = re.split(r"[:,]", run_name, maxsplit=1)[0]
    try:
        return benchmark_name(run_name), spec
    except ValueError:
        return spec, spec


def _value(path: Path, metric: str) -> float:
    try:
        stats: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        name = helm_metric(metric)
        for split in MAIN_SPLITS:
            means = [
                float(stat["mean"])
                for stat in stats
                if stat["name"]["name"] == name
                and stat["name"].get("split") == split
                and "perturbation" not in stat["name"]
                and stat.get("count", 0) > 0
            ]
            if means and not all(map(math.isfinite, means)):
                raise ValueError(f"{name} on the split {split} is not a finite number")
            if means:  # several where HELM has sub-splits
                return sum(means) / len(means)
        known = ", ".join(sorted({stat["name"]["name"] for stat in stats if stat.get("count", 0) > 0}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HelmOutputError(f"{path}: cannot be read as HELM's stats.json: {error!r}") from error
    raise HelmOutputError(f"{path}: no value of '{metric}' ({name}) on a main split; it has: {known}")
