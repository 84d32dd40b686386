"""Running one HELM task on one loaded model, through HELM's own Runner, in this process.

HELM keeps global state (registries, output path, random generators): one evaluation at a time per process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoeval.helm.contained import HelmTimeoutError, missing_file, own_randomness, quiet, time_limit
from autoeval.helm.registration import helm_model_name, registered, usable_window
from autoeval.helm.results import HelmResultError, RunRecord, mean_statistic, read_run, read_scores
from autoeval.helm.spec import HARNESS_VERSION, HelmTask, helm_version, with_model
from autoeval.models.requests import LanguageModel
from autoeval.offline.environment import offline
from recorder.files import write_json
from recorder.results import Item, Score

_LOGGER = logging.getLogger("autoeval.helm")
_RECEIPT = "autoeval.json"  # written last into a run directory: the run is complete, and this is what it ran


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
    cost_before = dataclasses.replace(model.cost)
    counts = {"runs": 0.0, "runs_reused": 0.0, "max_tokens_capped": 0.0, "prompts_reused": 0.0}
    directories: list[Path] = []
    failures: list[str] = []
    with offline(*_host(model)), quiet(), registered(model, name=name):
        with _benchmark_output(output_path):
            _use_nltk_data(output_path)
            runner = _runner(output_path, suite)
            for entry in task.entries:
                try:
                    directories += _run_entry(runner, entry, task, model, name, seconds_limit, counts)
                except Exception as error:
                    _LOGGER.warning("HELM entry %s failed", entry, exc_info=True)
                    failures.append(_reason(entry, error, output_path))
        if failures:
            raise HelmRunError(
                f"{task.name}: {len(failures)} of {len(task.entries)} HELM entries failed: " + "; ".join(failures)
            )
        runs = [read_run(directory) for directory in directories]
        scores, items = read_scores(runs, task.metrics)
        cost = {**counts, **_cost(cost_before, model), **_prompt_statistics(runs)}
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


def _use_nltk_data(output_path: Path) -> None:
    """Let nltk find its data in ``<output_path>/nltk_data`` too, so that all that HELM needs can lie in one place."""
    directory = output_path / "nltk_data"
    if directory.is_dir():
        import nltk

        if str(directory) not in nltk.data.path:
            nltk.data.path.append(str(directory))


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


def _run_entry(
    runner: Any,
    entry: str,
    task: HelmTask,
    model: LanguageModel,
    name: str,
    seconds_limit: float | None,
    counts: dict[str, float],
) -> list[Path]:
    """Run what one run entry expands to; the run directories."""
    from helm.benchmark.presentation.run_entry import RunEntry
    from helm.benchmark.run import run_entries_to_run_specs

    from autoeval.helm.rouge import with_computable_metrics
    from autoeval.helm.runner import fit

    with own_randomness(), time_limit(seconds_limit, entry):
        specs = run_entries_to_run_specs(
            [RunEntry(description=with_model(entry, name), priority=1, groups=None)],
            max_eval_instances=task.eval_instances,
            num_train_trials=task.num_train_trials,
        )
    if not specs:
        raise HelmResultError(f"HELM makes no run of {entry!r}")
    directories = []
    for spec in specs:
        fitted = fit(spec, usable_window(model))
        counts["max_tokens_capped"] += fitted is not spec
        # HELM writes where this method says; a run spec's name is its directory, and must not lead out of it.
        spec = dataclasses.replace(with_computable_metrics(fitted), name=spec.name.replace("/", "_"))
        directory = Path(runner._get_run_path(spec))
        digest = _digest(spec, model)
        counts["runs"] += 1
        if _receipt_digest(directory) == digest:
            counts["runs_reused"] += 1
        else:
            (directory / _RECEIPT).unlink(missing_ok=True)
            with own_randomness(), time_limit(seconds_limit, spec.name):
                reused = runner.prompts_reused
                runner.run_one(spec)
                counts["prompts_reused"] += runner.prompts_reused - reused
            write_json(directory / _RECEIPT, {"digest": digest, "helm": helm_version(), "model": name})
        directories.append(directory)
    return directories


def _digest(spec: Any, model: LanguageModel) -> str:
    """A hash of what the run's results depend on besides the weights (these are in the model's unique name)."""
    from helm.common.general import asdict_without_nones

    content = {
        "spec": asdict_without_nones(spec),
        "window": usable_window(model),
        "helm": helm_version(),
        "harness": HARNESS_VERSION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _receipt_digest(directory: Path) -> str | None:
    try:
        content = json.loads((directory / _RECEIPT).read_text(encoding="utf-8"))
        return content["digest"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return None  # no receipt, or not one: the run is made again


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
