"""``--dry-run``: the tasks of both stages with their commands, what they cost, and what is done already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoeval.partitioners import SizePartitioner, build_partitioner
from autoeval.partitioners.base import Dataset
from autoeval.run.job import Job
from autoeval.run.progress import Progress
from autoeval.run.spent import SpentBefore
from autoeval.tasks.names import dataset_abbr, model_abbr
from autoeval.tasks.openicl import OpenICLEvalTask, OpenICLInferTask, Task


def print_plan(job: Job, progress: Progress, *, mode: str, fresh: bool) -> int:
    """Print it; nothing is run and nothing is written."""
    directory, sizes = progress.directory, _Sizes(progress)
    shown = directory.parent / "TIMESTAMP" if fresh else directory
    print(f"output: {shown}{'' if fresh else ' (goes on)'}\n")
    if mode in ("all", "infer"):
        tasks = build_partitioner(job.infer.partitioner).partition(
            job.models,
            job.datasets,
            done=progress.inferred,
            count=sizes,
            keep=job.keep(shown),
            measured=SpentBefore(job.work_dir),
        )
        _print_stage("infer", [OpenICLInferTask(task) for task in tasks], shown)
        _print_cost(job, sizes, tasks)
    if mode in ("all", "eval"):
        # What inference will make anew has to be evaluated anew.
        tasks = build_partitioner(job.eval.partitioner).partition(
            job.models,
            job.datasets,
            done=lambda model, one: progress.inferred(model, one) and progress.evaluated(model, one, remove=False),
            count=sizes,
            keep=job.keep(shown),
        )
        _print_stage("eval", [OpenICLEvalTask(task) for task in tasks], shown)
    return 0


class _Sizes:
    """Numbers of items; of data that is not there, 0 and the reason, so that the rest of the plan can be shown."""

    def __init__(self, progress: Progress) -> None:
        self._count = progress.count
        self.problems: dict[str, str] = {}

    def __call__(self, dataset: Dataset) -> int:
        try:
            return self._count(dataset)
        except (ValueError, OSError) as error:
            self.problems[dataset_abbr(dataset)] = str(error)
            return 0


def _print_stage(name: str, tasks: Sequence[Task], directory: Path) -> None:
    print(f"{name}: {len(tasks)} task{'' if len(tasks) == 1 else 's'}")
    for number, task in enumerate(tasks):
        print(f"  {task.name}")
        print(f"    {task.get_command(directory / 'configs' / 'tasks' / f'TIMESTAMP_{name}_{number}.json')}")
    print()


def _print_cost(job: Job, sizes: _Sizes, tasks: Sequence[dict[str, Any]]) -> None:
    """Items and cost of every model and dataset, with what is left of it."""
    from tabulate import tabulate

    waiting: dict[tuple[str, str], list[Dataset]] = {}
    for task in tasks:
        for dataset in task["datasets"][0]:
            waiting.setdefault((model_abbr(task["models"][0]), _root(job, dataset)), []).append(dataset)
    weigh = SizePartitioner(gen_task_coef=int(job.infer.partitioner.get("gen_task_coef", 20)))
    rows, total = [], 0
    for model in job.models:
        for dataset in job.datasets:
            left = waiting.get((model_abbr(model), dataset_abbr(dataset)), [])
            cost = sum(weigh.cost(one, sizes) for one in left)
            items, todo = sizes(dataset), sum(map(sizes, left))
            known = [items, items - todo, todo, len(left), cost]
            rows.append([model_abbr(model), dataset_abbr(dataset), *(known if items else ["?"] * 5)])
            total += cost
    headers = ["model", "dataset", "items", "done", "to do", "parts", "cost"]
    print(tabulate(rows, headers=headers))
    print(f"cost in all: {total} (an item costs one for each ranked label, {weigh.gen_task_coef} when it is generated)")
    for abbr, problem in sizes.problems.items():
        print(f"{abbr}: {problem}")
    print()


def _root(job: Job, dataset: Dataset) -> str:
    """The dataset of the job that ``dataset`` is, or is a part of."""
    abbrs = {dataset_abbr(one) for one in job.datasets}
    abbr = dataset_abbr(dataset)
    return abbr if abbr in abbrs else abbr.rpartition("_")[0]
