"""OpenICL and HELM tasks under one noun, so that the worker needs to know neither."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.tasks.plan import EvaluationPlan, HelmPlan, TaskPlan
from autoeval.tasks.shares import remove_other_shares, remove_shares
from recorder.files import write_json
from recorder.results import Item, ResultFileError, Score, TaskResult, read_result, write_result

if TYPE_CHECKING:
    from autoeval.helm.spec import HelmTask


@dataclass(frozen=True)
class Work:
    """One task: its ``name`` and ``version`` as recorded, its ``source`` (``icl`` or ``helm``), the room's own task."""

    name: str
    version: str
    source: str
    task: Any

    @property
    def size(self) -> float:
        """What it may cost, where nothing was measured: items times what is asked of each."""
        if self.source == "helm":
            return float(self.task.size)
        from autoeval.tasks.icl import size_of

        return size_of(self.task)

    @property
    def family(self) -> str:
        """The same for tasks whose prompts begin alike: rankings and generations of the same rows."""
        if self.source == "helm":
            return self.name
        from autoeval.tasks.icl import rows_of

        return rows_of(self.task)

    @property
    def most_shares(self) -> int:
        """In how many shares it may be evaluated: of its items, or of a benchmark's run entries."""
        if self.source == "helm":
            return len(self.task.entries)
        from autoeval.tasks.cutting import most_shares

        return most_shares(self.task)


@dataclass(frozen=True)
class Outcome:
    """What a task found; ``cost`` is what only its own room can tell."""

    predictions: dict[str, Any] | None
    scores: tuple[Score, ...]
    items: tuple[Item, ...]
    cost: dict[str, float] = field(default_factory=dict)


def load_tasks(plan: TaskPlan) -> list[Work]:
    """All tasks of a plan, OpenICL's first. Raises ``ValueError`` for a name or a file that is not there."""
    work: list[Work] = []
    if plan.icl is not None:
        from autoeval.tasks.icl import load_icl_tasks

        for icl in load_icl_tasks(
            plan.icl.datasets,
            data_dir=Path(plan.icl.data_dir),
            limit=plan.icl.limit,
            allow_code_execution=plan.icl.allow_code_execution,
        ):
            work.append(Work(icl.name, icl.version, "icl", icl))
    if plan.helm is not None:
        for helm in load_planned_helm_tasks(plan.helm):
            work.append(Work(helm.name, helm.version, "helm", helm))
    _refuse_double_names(work)
    return work


def load_planned_helm_tasks(plan: HelmPlan) -> list[HelmTask]:
    """The HELM tasks of a plan. Raises ``HelmConfigError`` for a file or a benchmark that is not there."""
    from autoeval.helm.spec import Benchmark, load_helm_tasks

    chosen = plan.benchmarks
    return load_helm_tasks(
        Path(plan.conf_path),
        eval_instances=plan.eval_instances,
        num_train_trials=plan.num_train_trials,
        benchmarks=None if chosen is None else [Benchmark(name, metrics) for name, metrics in chosen],
    )


def _refuse_double_names(work: Sequence[Work]) -> None:
    seen: dict[str, Work] = {}
    for task in work:
        if task.name in seen:
            raise ValueError(f"two tasks are called '{task.name}' ({seen[task.name].source} and {task.source})")
        seen[task.name] = task


def existing_result(plan: EvaluationPlan, task: str, version: str) -> TaskResult | None:
    """The result on disk, when it is of this very save and this very version of the task."""
    path = plan.result_path(task)
    if not path.exists():
        return None
    try:
        result = read_result(path)
    except ResultFileError:
        return None
    same = result.checkpoint.fingerprint == plan.checkpoint.fingerprint and result.task_version == version
    return result if same else None


def set_aside_other_saves(plan: EvaluationPlan) -> None:
    """Results of an earlier save of this iteration keep their files, under ``superseded/<its fingerprint>``."""
    directory = Path(plan.directory)
    remove_other_shares(plan)
    for path in sorted((directory / "results").glob("*/*.json")):
        try:
            other = read_result(path).checkpoint.fingerprint
        except ResultFileError:
            continue
        if other == plan.checkpoint.fingerprint:
            continue
        aside = directory / "superseded" / other[:12]
        for kind in ("results", "predictions"):
            old = directory / kind / path.parent.name / path.name
            new = aside / kind / path.parent.name / path.name
            if old.exists():
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(old, new)


def run_helm(plan: EvaluationPlan, task: Work, model: Any) -> Outcome:
    """Score ``model`` on a HELM task; its predictions are HELM's own files."""
    from autoeval.helm.run import run_helm_task

    assert plan.tasks.helm is not None
    checkpoint = plan.checkpoint
    helm = run_helm_task(
        task.task,
        model,
        model_name=f"autoeval/{checkpoint.model}-{checkpoint.iteration}-{checkpoint.fingerprint[:8]}",
        output_path=Path(plan.tasks.helm.output_path),
        suite=plan.tasks.helm.suite,
        seconds_limit=plan.tasks.helm.seconds_limit,
    )
    return Outcome(None, tuple(helm.scores), tuple(helm.items), helm.cost)


def record(plan: EvaluationPlan, task: Work, outcome: Outcome, cost: dict[str, float]) -> None:
    """Write the predictions, then the result: where there is a result, the task is done."""
    if outcome.predictions is not None:
        write_json(plan.predictions_path(task.name), outcome.predictions, indent=None)
    result = TaskResult(
        checkpoint=plan.checkpoint,
        task=task.name,
        task_version=task.version,
        source=task.source,
        scores=outcome.scores,
        items=outcome.items,
        cost={**outcome.cost, **cost},
        finished_at=round(time.time(), 3),
    )
    write_result(plan.result_path(task.name), result)
    remove_shares(plan, task.name)
