"""Running one HELM task on one loaded model, through HELM's own Runner, in this process.

HELM keeps global state (registries, output path, random generators): one evaluation at a time per process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoeval.helm import imports
from autoeval.helm.contained import HelmTimeoutError, missing_file, quiet
from autoeval.helm.registration import helm_model_name, registered
from autoeval.helm.results import RunRecord, mean_statistic, read_run, read_scores
from autoeval.helm.runs import Runs
from autoeval.helm.spec import HelmTask
from autoeval.models.requests import LanguageModel
from autoeval.offline.environment import offline
from recorder.results import Item, Score

_LOGGER = logging.getLogger("autoeval.helm")


class HelmRunError(RuntimeError):
    """Some runs of a task failed; the message says which and why. The others are complete on disk."""


@dataclass(frozen=True)
class HelmOutcome:
    scores: tuple[Score, ...]
    items: tuple[Item, ...]
    cost: dict[str, float] = field(default_factory=dict)


def run_helm_task(
    task: HelmTask,
    model: LanguageModel,
    *,
    model_name: str,
    output_path: Path,
    suite: str,
    seconds_limit: float | None = None,
) -> HelmOutcome:
    """Evaluate ``task`` and read its scores.

    ``model_name`` must be unique to the checkpoint (model, iteration and fingerprint): runs complete under this name
    are not repeated. ``output_path`` is HELM's (``scenarios/<name>/`` holds data, ``runs/<suite>/`` receives runs).
    ``seconds_limit`` is for each run. Every entry is tried; then ``HelmRunError`` tells which failed, if any.
    """
    output_path = Path(output_path).resolve()
    name = helm_model_name(model_name)
    started = time.monotonic()
    with offline(*_host(model)), quiet():
        imports.finish()
    cost_before = dataclasses.replace(model.cost)
    with offline(*_host(model)), quiet(), registered(model, name=name):
        with _benchmark_output(output_path):
            made = Runs(_runner(output_path, suite), task, model, name, seconds_limit)
            made.complete()
        if made.failures:
            reasons = "; ".join(_reason(entry, error, output_path) for entry, error in made.failures.items())
            raise HelmRunError(
                f"{task.name}: {len(made.failures)} of {len(task.entries)} HELM entries failed: {reasons}"
            )
        runs = [read_run(directory) for directory in made.directories]
        scores, items = read_scores(runs, task.metrics)
        cost = {**made.counts, **_cost(cost_before, model), **_prompt_statistics(runs)}
    cost["seconds"] = time.monotonic() - started
    return HelmOutcome(scores, items, cost)


def _host(model: LanguageModel) -> list[str]:
    """The host of a model that is a server."""
    host = urlsplit(getattr(model, "base_url", "")).hostname
    return [host] if host else []


@contextlib.contextmanager
def _benchmark_output(output_path: Path) -> Iterator[None]:
    """HELM's global output path (some run specs read their data while they are built) is ``output_path`` inside."""
    from helm.benchmark.runner import get_benchmark_output_path, set_benchmark_output_path

    before = get_benchmark_output_path()
    set_benchmark_output_path(str(output_path))
    try:
        yield
    finally:
        set_benchmark_output_path(before)


def _runner(output_path: Path, suite: str) -> Any:
    from helm.benchmark.executor import ExecutionSpec
    from helm.common.authentication import Authentication

    from autoeval.helm.runner import BulkRunner

    local_path = output_path / "local"  # where HELM looks for credentials; there are none, and no request cache
    local_path.mkdir(parents=True, exist_ok=True)
    execution = ExecutionSpec(url=None, auth=Authentication(""), local_path=str(local_path), parallelism=1)
    return BulkRunner(
        execution,
        str(output_path),
        suite,
        skip_instances=False,
        cache_instances=False,
        cache_instances_only=False,
        skip_completed_runs=False,  # HELM looks only whether files exist; the receipt knows more
        exit_on_error=True,
    )


def _reason(entry: str, error: Exception, output_path: Path) -> str:
    """One line that tells the user what to do."""
    if isinstance(error, HelmTimeoutError):
        return str(error)
    missing = missing_file(error)
    if missing is not None:
        path, address = missing
        source = f" (from {address})" if address else ""
        return f"{entry}: the data file {path} is missing; put it there{source}"
    if isinstance(error, LookupError) and "punkt" in str(error):
        place = output_path / "nltk_data" / "tokenizers" / "punkt_tab"
        return f"{entry}: its metrics need nltk's punkt_tab; put it at {place} or where NLTK_DATA points"
    text = " ".join(str(error).split())
    return f"{entry}: {type(error).__name__}: {text[:500]}"


def _cost(before: Any, model: LanguageModel) -> dict[str, float]:
    names = ("prompt_tokens", "computed_tokens", "generated_tokens")
    return {name: float(getattr(model.cost, name) - getattr(before, name)) for name in names}


def _prompt_statistics(runs: list[RunRecord]) -> dict[str, float]:
    """Shots that fitted into the prompts, and the share of prompts cut even without any: short windows lose them."""
    values = {name: mean_statistic(runs, name) for name in ("num_train_instances", "prompt_truncated")}
    return {name: value for name, value in values.items() if value is not None}
