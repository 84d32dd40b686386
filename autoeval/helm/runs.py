"""The runs of one task on one model: prepared in the order of the entries, asked, measured and written.

A run whose requests fill the model's passes is asked alone. Small ones (a subject with a few instances; on a GPU, whose
passes are large, most) wait for each other and are asked in one call: half-empty passes are avoided, and what their
prompts share is computed once. What fails or is late together is tried by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from autoeval.helm.contained import limited, own_randomness
from autoeval.helm.registration import usable_window
from autoeval.helm.results import HelmResultError
from autoeval.helm.spec import HARNESS_VERSION, HelmTask, helm_version, with_model
from autoeval.models.requests import LanguageModel
from recorder.files import write_json

_LOGGER = logging.getLogger("autoeval.helm")
_RECEIPT = "autoeval.json"  # written last into a run directory: the run is complete, and this is what it ran
_FULL_PASSES = 4  # runs that together have no more wait for others: a kill loses no more than these
_Result = TypeVar("_Result")


@dataclasses.dataclass
class _Run:
    """``seconds``: what it has taken so far, of its limit."""

    entry: str
    directory: Path
    digest: str
    spec: Any
    prepared: Any = None
    tokens: int = 0
    seconds: float = 0.0


class Runs:
    """Runs ``task``'s entries on ``model``, which HELM knows as ``name``.

    ``directories`` are those of the complete runs, in the order of the entries; ``failures`` has an error for each
    entry of which a run failed; ``counts`` is part of the task's cost.
    """

    def __init__(
        self, runner: Any, task: HelmTask, model: LanguageModel, name: str, seconds_limit: float | None = None
    ) -> None:
        self._runner, self._task, self._model, self._name = runner, task, model, name
        self._limit = seconds_limit
        self._waiting: list[_Run] = []
        self.directories: list[Path] = []
        self.failures: dict[str, Exception] = {}
        names = ("runs", "runs_reused", "max_tokens_capped", "prompts_reused", "runs_asked_together")
        self.counts: dict[str, float] = dict.fromkeys(names, 0.0)

    def complete(self) -> None:
        """Run what is not complete on disk."""
        for entry in self._task.entries:
            try:
                for run in self._runs_of(entry):
                    self._begin(run)
            except Exception as error:
                self._failed(entry, error)
        self._ask_waiting()

    def _runs_of(self, entry: str) -> list[_Run]:
        """What a run entry expands to. Raises what HELM says to an entry it does not know."""
        from helm.benchmark.presentation.run_entry import RunEntry
        from helm.benchmark.run import run_entries_to_run_specs

        from autoeval.helm.rouge import with_computable_metrics
        from autoeval.helm.runner import fit

        def expand() -> list[Any]:
            with own_randomness():
                return run_entries_to_run_specs(
                    [RunEntry(description=with_model(entry, self._name), priority=1, groups=None)],
                    max_eval_instances=self._task.eval_instances,
                    num_train_trials=self._task.num_train_trials,
                )

        specs = limited(self._limit, entry, expand)
        if not specs:
            raise HelmResultError(f"HELM makes no run of {entry!r}")
        runs = []
        for spec in specs:
            fitted = fit(spec, usable_window(self._model))
            self.counts["max_tokens_capped"] += fitted is not spec
            # HELM writes where this method says; a run spec's name is its directory, and must not lead out of it.
            spec = dataclasses.replace(with_computable_metrics(fitted), name=spec.name.replace("/", "_"))
            runs.append(_Run(entry, Path(self._runner._get_run_path(spec)), digest_of(spec, self._model), spec))
        return runs

    def _begin(self, run: _Run) -> None:
        """Prepare ``run`` when it is not complete, and ask it or let it wait."""
        self.directories.append(run.directory)
        self.counts["runs"] += 1
        if receipt_digest(run.directory) == run.digest:
            self.counts["runs_reused"] += 1
            return
        (run.directory / _RECEIPT).unlink(missing_ok=True)
        reused = self._runner.prompts_reused
        run.prepared = self._timed(run, lambda: self._runner.prepare(run.spec))
        self.counts["prompts_reused"] += self._runner.prompts_reused - reused
        most = _FULL_PASSES * getattr(self._model, "batch_tokens", 0)  # a server has no passes of ours
        run.tokens = run.prepared.computed_tokens if most else 1
        if run.tokens > most:
            self._ask(run)
            return
        if sum(one.tokens for one in self._waiting) + run.tokens > most:
            self._ask_waiting()
        self._waiting.append(run)

    def _timed(self, run: _Run, work: Callable[[], _Result]) -> _Result:
        """``work`` for ``run`` within what is left of its limit."""
        started = time.monotonic()
        left = None if self._limit is None else max(self._limit - run.seconds, 0.001)

        def seeded() -> _Result:
            with own_randomness():
                return work()

        try:
            return limited(left, run.spec.name, seeded, shown=self._limit)
        finally:
            run.seconds += time.monotonic() - started

    def _ask(self, run: _Run) -> None:
        self._finish(run, self._timed(run, lambda: self._runner.executor.execute(run.prepared.state)))

    def _finish(self, run: _Run, answered: Any) -> None:
        self._timed(run, lambda: self._runner.finish(run.prepared, answered))
        run.prepared = None
        write_json(run.directory / _RECEIPT, {"digest": run.digest, "helm": helm_version(), "model": self._name})

    def _ask_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        answers = self._asked_together(waiting) if len(waiting) > 1 else [None] * len(waiting)
        for run, answered in zip(waiting, answers, strict=True):
            try:
                self._ask(run) if answered is None else self._finish(run, answered)
            except Exception as error:
                self._failed(run.entry, error)

    def _asked_together(self, runs: list[_Run]) -> list[Any]:
        """Each run's answers; ``None``s when it is not known which of them is to blame for an error."""
        names = ", ".join(run.spec.name for run in runs)
        states = [run.prepared.state for run in runs]

        def work() -> list[Any]:
            with own_randomness():
                return list(self._runner.executor.execute_together(states))

        try:
            answers = limited(self._limit, names, work)
        except Exception:
            _LOGGER.warning("asked together %s fail; each is tried by itself", names, exc_info=True)
            return [None] * len(runs)
        self.counts["runs_asked_together"] += len(runs)
        return answers

    def _failed(self, entry: str, error: Exception) -> None:
        _LOGGER.warning("HELM entry %s failed", entry, exc_info=error)
        self.failures.setdefault(entry, error)


def digest_of(spec: Any, model: LanguageModel) -> str:
    """A hash of what the run's results depend on besides the weights (these are in the model's unique name)."""
    from helm.common.general import asdict_without_nones

    content = {
        "spec": asdict_without_nones(spec),
        "window": usable_window(model),
        "helm": helm_version(),
        "harness": HARNESS_VERSION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def receipt_digest(directory: Path) -> str | None:
    try:
        content = json.loads((directory / _RECEIPT).read_text(encoding="utf-8"))
        return content["digest"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return None  # no receipt, or not one: the run is made again
