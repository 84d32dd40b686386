"""Reading the directories that ``helm-run`` leaves, for ``wandb_writer.py`` (``source: helm``).

``<helm_output_dir>/runs/<suite>/<run>/stats.json`` is a list of statistics named by metric, split and, where there is
one, perturbation. The benchmark's value is the mean over its runs (every MMLU subject weighs the same) on the main
split without perturbation; its standard error comes from ``per_instance_stats.json``. Where there are no runs but the tables of ``helm-summarize`` (``groups/<group>.json``), the
value is read from these.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorder.baselines import STDERR
from recorder.helm_names import benchmark_name, display_metric, helm_metric, main_splits
from recorder.helm_statistics import Stratum, item_values, means, standard_error, value, weighted
from recorder.untrusted import parse_json

_ITERATION = re.compile(r"iter(?:ation)?[_=-]?0*(\d+)")
_OURS = re.compile(r"model=autoeval_[^,]*-0*(\d+)-[0-9a-f]{8}(?=,|$)")  # <model>-<iteration>-<fingerprint>
_MODEL = re.compile(r",?\bmodel=[^,]*")


class HelmOutputError(ValueError):
    """HELM's output cannot be used; the message names the file and what was expected."""


def read_suite(
    output_dir: Path, suite: str, benchmarks: Sequence[tuple[str, Sequence[str]]], default_iteration: int
) -> dict[int, dict[str, float]]:
    """Iteration -> ``<benchmark>.<metric>`` -> value of the (name, metrics) in ``benchmarks``.

    Beside it, as ``<benchmark>.<metric>_stderr``, the standard error, where the runs have their items' values.
    The iteration is that of our own runs' names, else what follows ``iter`` in the run's or the suite's name
    (``iter_0002000``), else ``default_iteration``. Of a checkpoint of ours that was saved twice the later run counts.
    Raises ``HelmOutputError`` when a benchmark has no runs, a run has no value for a metric, or several models of one
    iteration are in the suite.
    """
    directory = output_dir / "runs" / suite
    if not directory.is_dir():
        raise HelmOutputError(f"{directory}: no such directory; expected HELM's runs of the suite '{suite}'")
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for benchmark, metrics in benchmarks:
        runs = [run for run in sorted(directory.iterdir()) if run.is_dir() and benchmark in _names(run)]
        table = directory / "groups" / f"{benchmark}.json"
        if runs:
            for iteration, of_iteration in _of_one_model(runs, suite, default_iteration).items():
                for metric in metrics:
                    found[iteration] |= _figure(f"{benchmark}.{metric}", of_iteration, metric)
        elif table.is_file():
            iteration, values = _from_table(table, metrics, suite, default_iteration)
            found[iteration] |= {f"{benchmark}.{metric}": mean for metric, mean in values.items()}
        else:
            names = {_benchmark(run.name) for run in directory.iterdir() if (run / "stats.json").is_file()}
            known = ", ".join(sorted(names)) or "none"
            raise HelmOutputError(f"{directory}: no run of the benchmark '{benchmark}' (there are: {known})")
    return dict(sorted(found.items()))


def _figure(key: str, runs: Sequence[Path], metric: str) -> dict[str, float]:
    """The macro average over ``runs`` as ``key``, and its standard error where every run has its items' values."""
    together = weighted([_strata(run, metric) for run in runs])
    error = standard_error(together)
    return {key: value(together)} | ({} if error is None else {f"{key}{STDERR}": error})


def _of_one_model(runs: Sequence[Path], suite: str, default_iteration: int) -> dict[int, list[Path]]:
    """Iteration -> runs, each run of the benchmark once."""
    chosen: dict[tuple[int, str], Path] = {}
    for run in runs:
        key = (_iteration(run.name, suite, default_iteration), _MODEL.sub("", run.name))
        other = chosen.get(key)
        if other is None or (_OURS.search(run.name) and _written(run) > _written(other)):
            chosen[key] = run
        elif not _OURS.search(run.name):
            raise HelmOutputError(
                f"{run.parent}: several models with iteration {key[0]} ({other.name} and {run.name}); "
                "expected one, or an iteration in the names (iter_0002000)"
            )
    by_iteration: dict[int, list[Path]] = defaultdict(list)
    for (iteration, _), run in sorted(chosen.items()):
        by_iteration[iteration].append(run)
    return by_iteration


def _iteration(name: str, suite: str, default: int) -> int:
    found = _OURS.search(name) or _ITERATION.search(name) or _ITERATION.search(suite)
    return int(found.group(1)) if found else default


def _written(run: Path) -> int:
    path = run / "stats.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _from_table(path: Path, metrics: Sequence[str], suite: str, default_iteration: int) -> tuple[int, dict[str, float]]:
    """(iteration, metric -> value) of ``helm-summarize``'s first table of a group: the average over its runs."""
    try:
        tables = parse_json(path.read_text(encoding="utf-8"))
        header = [str(cell["value"]).casefold() for cell in tables[0]["header"]]
        rows = tables[0]["rows"]
        if len(rows) != 1:
            models = ", ".join(str(row[0]["value"]) for row in rows)
            raise HelmOutputError(f"{path}: expected the row of one model, it has {models or 'none'}")
        values = {}
        for metric in metrics:
            shown = display_metric(helm_metric(metric)).casefold()
            value = rows[0][header.index(shown)].get("value") if shown in header else None
            if value is None or not math.isfinite(value):
                raise HelmOutputError(f"{path}: no value of '{metric}'; its columns are {', '.join(header[1:])}")
            values[metric] = float(value)
        return _iteration(json.dumps(rows[0][0]), suite, default_iteration), values
    except HelmOutputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise HelmOutputError(f"{path}: cannot be read as a table of helm-summarize: {error!r}") from error


def _names(run: Path) -> set[str]:
    """What the benchmark of a run is called: by its name (``commonsense:dataset=hellaswag,model=x`` is of hellaswag),
    its run spec, and the groups that HELM counts it to."""
    try:
        groups = parse_json((run / "run_spec.json").read_text(encoding="utf-8"))["groups"]
    except (OSError, ValueError, KeyError, TypeError):
        groups = []
    return {_benchmark(run.name), _spec(run.name), *map(str, groups)}


def _benchmark(run_name: str) -> str:
    try:
        return benchmark_name(run_name)
    except ValueError:
        return _spec(run_name)


def _spec(run_name: str) -> str:
    return re.split(r"[:,]", run_name, maxsplit=1)[0]


def _strata(run: Path, metric: str) -> list[Stratum]:
    """The sub-splits of a run on its main split, with its items where they were kept."""
    path, name = run / "stats.json", helm_metric(metric)
    splits = main_splits(_benchmark(run.name))
    try:
        stats: list[dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
        for split in splits:
            found = means(stats, name, split)
            if found and not all(map(math.isfinite, found.values())):
                raise ValueError(f"{name} on the split {split} is not a finite number")
            if found:
                items = _items(run / "per_instance_stats.json", name, split)
                return [Stratum(mean, items.get(sub_split, {})) for sub_split, mean in sorted(found.items())]
        known = ", ".join(sorted({stat["name"]["name"] for stat in stats if stat.get("count", 0) > 0}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HelmOutputError(f"{path}: cannot be read as HELM's statistics: {error!r}") from error
    raise HelmOutputError(
        f"{path}: no value of '{metric}' ({name}) on the split {' or '.join(splits)}; it has: {known}"
    )


def _items(path: Path, name: str, split: str) -> dict[str, dict[str, float]]:
    if not path.is_file():
        return {}
    return item_values(parse_json(path.read_text(encoding="utf-8")), name, split)
