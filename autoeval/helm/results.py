"""HELM's run directories -> scores and items. Reads ours and those of ``helm-run``.

A score is the macro average over the benchmark's runs, its standard error that of a stratified sample
(``recorder/helm_statistics.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from recorder.helm_names import display_metric, helm_metric
from recorder.helm_statistics import Stratum, item_values, means, standard_error, value, weighted
from recorder.results import Item, Score

_LOWER_IS_BETTER = {"perplexity", "bits_per_byte", "ece_1_bin", "ece_10_bin", "toxic_frac", "expected_max_toxicity"}
_CHOICE_METRICS = {"exact_match", "quasi_exact_match"}


class HelmResultError(ValueError):
    """A run directory that cannot be used; the message names the file and what was expected."""


@dataclass(frozen=True)
class RunRecord:
    """One run directory. ``key`` is the run's name without its model: the same for every checkpoint."""

    path: Path
    key: str
    spec: dict[str, Any]
    stats: list[dict[str, Any]]
    per_instance: list[dict[str, Any]]

    @cached_property
    def main(self) -> tuple[str, str]:
        """(metric, split) that HELM reports for it."""
        return main_metric(self.spec)

    @property
    def method(self) -> str:
        return str(self.spec["adapter_spec"].get("method", ""))


def read_run(path: Path | str) -> RunRecord:
    """Read one run directory. Raises ``HelmResultError`` naming the file that is missing or malformed."""
    path = Path(path)
    spec = _read_json(path / "run_spec.json", dict)
    if not isinstance(spec.get("name"), str) or not isinstance(spec.get("adapter_spec"), dict):
        raise HelmResultError(f"{path / 'run_spec.json'}: expected the keys `name` and `adapter_spec`")
    return RunRecord(
        path=path,
        key=_without_model(spec["name"]),
        spec=spec,
        stats=_read_json(path / "stats.json", list),
        per_instance=_read_json(path / "per_instance_stats.json", list),
    )


def read_scores(runs: Sequence[RunRecord], metrics: Sequence[str] = ()) -> tuple[tuple[Score, ...], tuple[Item, ...]]:
    """Scores of one benchmark over its ``runs``, by display metric; the scenario's main metric when none is asked for.

    Raises ``HelmResultError`` when a run has no value for a metric: a mean over the others would be another number.
    """
    if not runs:
        raise HelmResultError("no runs to read")
    shown = {helm_metric(metric): metric for metric in metrics}  # a score is called what the user calls it
    if not shown:
        shown = {name: display_metric(name) for name in (run.main[0] for run in runs)}
    scores, items = [], []
    for name, display in shown.items():
        strata = [_strata(run, name) for run in runs]
        scores.append(_score(runs, name, display, strata))
        for run, of_run in zip(runs, strata, strict=True):
            subject = run.key if len(runs) >= ENOUGH_RUNS else None  # fewer are too few to tell how subjects spread
            outcomes = [pair for stratum in of_run for pair in stratum.items.items()]
            items += [Item(f"{run.key}|{instance}", display, outcome, subject) for instance, outcome in outcomes]
    return tuple(scores), tuple(items)


ENOUGH_RUNS = 10  # of one benchmark (MMLU's subjects), from which on their items are compared in clusters

# The group of scenarios on the user's own files (custom_mcqa), for which HELM publishes no table and so no main metric.
_USERS_OWN_DATA = {"custom": ("exact_match", "test")}


def main_metric(spec: Mapping[str, Any]) -> tuple[str, str]:
    """(metric, split) that HELM reports for the scenario of a run spec.

    From the scenario's own metadata, else from HELM's schema_classic.yaml by the run's groups (the last group that
    names one: ``groups`` goes from general to special).
    """
    from helm.benchmark.scenarios.scenario import ScenarioSpec, create_scenario

    try:
        metadata = create_scenario(ScenarioSpec(**spec["scenario_spec"])).get_metadata()
        return metadata.main_metric, metadata.main_split
    except NotImplementedError:
        pass  # HELM's base class raises it: a scenario without metadata of its own, which the schema may know
    environments = _schema_environments() | _USERS_OWN_DATA
    for group in reversed(spec.get("groups", [])):
        if group in environments:
            return environments[group]
    raise HelmResultError(f"run {spec['name']}: HELM names no main metric for it; set `metrics` for this benchmark")


def mean_statistic(runs: Sequence[RunRecord], name: str) -> float | None:
    """The average over runs of a statistic such as ``num_train_instances``, on the split that is reported."""
    values = [value for run in runs for value in _means(run, name).values()]
    return sum(values) / len(values) if values else None


@cache
def _schema_environments() -> dict[str, tuple[str, str]]:
    from importlib.resources import files

    import yaml

    text = files("helm.benchmark").joinpath("static/schema_classic.yaml").read_text(encoding="utf-8")
    environments = {group["name"]: group.get("environment") or {} for group in yaml.safe_load(text)["run_groups"]}
    return {
        name: (environment["main_name"], environment["main_split"])
        for name, environment in environments.items()
        if "main_name" in environment and "main_split" in environment
    }


def _means(run: RunRecord, metric: str) -> dict[str, float]:
    return means(run.stats, metric, run.main[1])


def _strata(run: RunRecord, metric: str) -> list[Stratum]:
    found = _means(run, metric)
    if not found:
        known = ", ".join(sorted({stat["name"]["name"] for stat in run.stats if stat.get("count", 0) > 0}))
        raise HelmResultError(f"{run.path / 'stats.json'}: no value of {metric!r} on the main split; it has {known}")
    values = item_values(run.per_instance, metric, run.main[1])
    counts = _means(run, "num_instances")
    return [
        Stratum(mean, values.get(sub_split, {}), round(counts.get(sub_split, 0)))
        for sub_split, mean in sorted(found.items())
    ]


def _score(runs: Sequence[RunRecord], metric: str, display: str, strata: Sequence[Sequence[Stratum]]) -> Score:
    together = weighted(strata)
    return Score(
        metric=display,
        value=value(together),
        stderr=standard_error(together),
        n=sum(len(stratum.items) or stratum.instances for stratum, _ in together),
        higher_is_better=metric not in _LOWER_IS_BETTER,
        chance=_chance(runs) if metric in _CHOICE_METRICS else None,
    )


def _chance(runs: Sequence[RunRecord]) -> float | None:
    """What guessing gives where every run is multiple choice: the average of one over the number of choices."""
    if not all(run.method.startswith("multiple_choice") for run in runs):
        return None
    per_run = []
    for run in runs:
        choices = [
            value
            for items in item_values(run.per_instance, "num_references", run.main[1]).values()
            for value in items.values()
        ]
        if not choices or min(choices) < 1:
            return None
        per_run.append(sum(1.0 / count for count in choices) / len(choices))
    return sum(per_run) / len(per_run)


def _without_model(name: str) -> str:
    """``mmlu:subject=anatomy,model=autoeval_x`` -> ``mmlu:subject=anatomy``."""
    return re.sub(r",model=[^,]*|(?<=:)model=[^,]*,?", "", name).rstrip(":,")


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise HelmResultError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise HelmResultError(f"{path}: expected a JSON {kind.__name__}")
    return content
