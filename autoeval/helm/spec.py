"""A HELM configuration file -> the HELM tasks of an evaluation. Needs only ``pyhocon``: the daemon may import it.

The file has HELM's own format (HOCON)::

    entries: [
      {description: "mmlu:subject=anatomy,model=text", priority: 1}
    ]

One task is one benchmark: every entry that belongs to it (all subjects of ``mmlu``) is one *run* of the task, and its
score is the average over the runs. ``model=`` is filled in when the task is run, whatever the file says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autoeval.helm.hocon import parse_hocon
from recorder.helm_names import benchmark_name, split_description

# Raise it when this room changes in a way that can change a score; old and new scores then get different curves.
HARNESS_VERSION = "1"


class HelmConfigError(ValueError):
    """A HELM configuration that cannot be used; the message names the file and the entry."""


@dataclass(frozen=True)
class Benchmark:
    """An entry of ``helm.benchmarks`` in evaluator.yaml: a benchmark, its display metrics (none: the main one)."""

    name: str
    metrics: tuple[str, ...] = ()


USUAL_PROMPT = 1000  # tokens, with five examples


@dataclass(frozen=True)
class HelmTask:
    """One benchmark. ``entries`` are run-entry descriptions without a model; ``metrics`` display names or empty."""

    name: str
    version: str
    entries: tuple[str, ...]
    metrics: tuple[str, ...]
    eval_instances: int = 100
    num_train_trials: int | None = None  # few-shot samples of every run; None: what the entry says, else one

    @property
    def size(self) -> int:
        """Tokens that it may cost, roughly: instances with a prompt of the usual length."""
        return len(self.entries) * self.eval_instances * (self.num_train_trials or 1) * USUAL_PROMPT


def load_helm_tasks(
    conf_path: Path | str,
    *,
    eval_instances: int,
    num_train_trials: int | None = None,
    benchmarks: Sequence[Benchmark] | None = None,
) -> list[HelmTask]:
    """The tasks of ``conf_path``, in the file's order; ``benchmarks`` keeps some and sets their metrics.

    Raises ``HelmConfigError`` when the file is missing or malformed, or a benchmark has no entry in it.
    """
    conf_path = Path(conf_path)
    if eval_instances < 1:
        raise HelmConfigError(f"{conf_path}: eval_instances is {eval_instances}, expected at least 1")
    groups: dict[str, list[str]] = {}
    for number, entry in enumerate(_read_entries(conf_path)):
        description = _description(conf_path, number, entry)
        entries = groups.setdefault(benchmark_name(description), [])
        if description in entries:
            raise HelmConfigError(f"{conf_path}: entries[{number}] repeats an earlier entry: {description!r}")
        entries.append(description)
    wanted = _wanted(conf_path, groups, benchmarks)
    return [
        HelmTask(
            name,
            task_version(groups[name], eval_instances, num_train_trials),
            tuple(groups[name]),
            metrics,
            eval_instances,
            num_train_trials,
        )
        for name, metrics in wanted.items()
    ]


def task_version(entries: Sequence[str], eval_instances: int, num_train_trials: int | None = None) -> str:
    """A short hash of all that can change the task's score (data staged by the user excepted)."""
    content: dict[str, Any] = {
        "entries": sorted(entries),
        "eval_instances": eval_instances,
        "helm": helm_version(),
        "harness": HARNESS_VERSION,
    }
    if num_train_trials is not None:
        content["num_train_trials"] = num_train_trials
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def helm_version() -> str:
    """The installed crfm-helm, read from package metadata (importing HELM takes seconds); "absent" without it."""
    try:
        return version("crfm-helm")
    except PackageNotFoundError:
        return "absent"


def with_model(description: str, model: str) -> str:
    """``description`` with ``model=`` set to ``model`` (a HELM model name such as ``autoeval/gpt2-iter_1000``)."""
    name, arguments = split_description(description)
    arguments = {key: value for key, value in arguments.items() if key not in ("model", "model_deployment")}
    return _join(name, {**arguments, "model": model})


def _join(name: str, arguments: dict[str, str]) -> str:
    if not arguments:
        return name
    return f"{name}:{','.join(f'{key}={value}' for key, value in arguments.items())}"


def _read_entries(conf_path: Path) -> list[Any]:
    import pyhocon
    import pyparsing

    try:
        text = conf_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HelmConfigError(f"{conf_path}: the HELM configuration cannot be read: {error}") from error
    try:
        content = parse_hocon(text)
    except (pyparsing.ParseBaseException, pyhocon.ConfigException, ValueError) as error:
        raise HelmConfigError(f"{conf_path}: not valid HOCON: {error}") from error
    entries = content.get("entries", None) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise HelmConfigError(f"{conf_path}: expected a non-empty list `entries: [{{description: …}}, …]`")
    return entries


def _description(conf_path: Path, number: int, entry: Any) -> str:
    """The entry's description without its model, checked."""
    where = f"{conf_path}: entries[{number}]"
    if not isinstance(entry, dict):
        raise HelmConfigError(f"{where}: expected a mapping with a `description`, got {entry!r}")
    if unknown := sorted(set(entry) - {"description", "priority", "groups"}):
        raise HelmConfigError(f"{where}: unknown key {unknown[0]!r}; HELM knows description, priority, groups")
    description = entry.get("description", None)
    if not isinstance(description, str):
        raise HelmConfigError(f"{where}: `description` must be a string, got {description!r}")
    try:
        name, arguments = split_description(description)
    except ValueError as error:
        raise HelmConfigError(f"{where}: {error}") from error
    kept = {key: value for key, value in arguments.items() if key not in ("model", "model_deployment")}
    return _join(name, kept)


def _wanted(
    conf_path: Path, groups: dict[str, list[str]], benchmarks: Sequence[Benchmark] | None
) -> dict[str, tuple[str, ...]]:
    """Benchmark name -> display metrics. A run-spec name (``natural_qa``) asks for all benchmarks made with it."""
    if benchmarks is None:
        return dict.fromkeys(groups, ())
    wanted: dict[str, tuple[str, ...]] = {}
    for benchmark in benchmarks:
        asked = benchmark.name.casefold()
        names = [name for name in groups if name.casefold() == asked]
        names = names or [name for name in groups if split_description(groups[name][0])[0].casefold() == asked]
        if not names:
            raise HelmConfigError(
                f"{conf_path}: no entry for the benchmark {benchmark.name!r}; it has {', '.join(sorted(groups))}"
            )
        for name in names:
            wanted[name] = tuple(benchmark.metrics)
    return wanted
