"""``LocalRunner``: the tasks of a stage as processes on this machine, as many at once as there are workers and GPU slots."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.jobs import QueueRefused, Resources
from autoeval.runners.local_queue import LocalQueue, visible_gpus
from autoeval.runners.outcome import Outcome, missing
from autoeval.runners.slots import Wanted
from autoeval.runners.worker_process import worker_environment
from autoeval.tasks.openicl import Task
from recorder.files import write_json

__all__ = ["LocalRunner", "visible_gpus"]


class LocalRunner:
    """Runs tasks in processes of their own. Ctrl-C ends them all; so does the death of this process.

    ``max_num_workers`` tasks at once; at most ``max_workers_per_gpu`` of them on one GPU. A task that fails is tried
    ``retry`` times more, unless its input is wrong. ``debug``: one after the other in this process, output not
    redirected. On a machine without GPUs all tasks run on the CPU.
    """

    def __init__(
        self,
        max_num_workers: int = 1,
        max_workers_per_gpu: int = 1,
        retry: int = 0,
        debug: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (("max_num_workers", max_num_workers), ("max_workers_per_gpu", max_workers_per_gpu)):
            if value < 1:
                raise ValueError(f"LocalRunner: {name} is {value}, expected at least 1")
        self.max_num_workers, self.max_workers_per_gpu = max_num_workers, max_workers_per_gpu
        self.retry, self.debug = retry, debug
        self._environment = dict(environment or {})

    def settle(self, folder: Path) -> None:
        """Wait for the tasks of a former process, which are about to end as it has."""
        if (folder / "queue").exists():
            self._cluster(self._queue(folder)).settle(folder)
        shutil.rmtree(folder / "queue", ignore_errors=True)

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        """Run all; outcomes in the order of ``tasks``. ``configs`` is where each task's configuration is written.

        Raises ``ValueError`` before anything runs when a task wants more GPUs than there are.
        """
        if not tasks:
            return []
        if self.debug:
            return [self._here(task, path) for task, path in zip(tasks, configs, strict=True)]
        folder = configs[0].parent
        queue = self._queue(folder)
        for task in tasks:
            if lacking := queue.capacity.lacks(Wanted(task.num_gpus)):
                raise QueueRefused(f"{task.name} wants {lacking}")
        outcomes = self._cluster(queue).launch(tasks, configs)
        shutil.rmtree(folder / "queue", ignore_errors=True)
        return outcomes

    def _queue(self, folder: Path) -> LocalQueue:
        return LocalQueue(
            folder / "queue",
            max_workers_per_gpu=self.max_workers_per_gpu,
            cpus=self.max_num_workers,
            tethered=True,
        )

    def _cluster(self, queue: LocalQueue) -> ClusterRunner:
        environment = dict(self._environment)
        if self.max_num_workers > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.max_num_workers)))
        return ClusterRunner(
            queue,
            max_num_workers=self.max_num_workers,
            retry=self.retry,
            resources=Resources(num_cpus=1),  # of as many slots as there are workers, whatever array it is in
            environment=environment,
            sleep=queue.wait,
        )

    def _here(self, task: Task, config: Path) -> Outcome:
        write_json(config, task.cfg)
        with self._with_environment():
            code = task.run()
        return Outcome(task, code, 1, None, missing(task))

    @contextlib.contextmanager
    def _with_environment(self) -> Iterator[None]:
        whole = {**worker_environment(), **self._environment}
        added = {key: value for key, value in whole.items() if key not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for key in added:
                os.environ.pop(key, None)
