"""``SlurmRunner``: the tasks of a stage as Slurm job arrays; with ``debug``, one after the other through srun."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.jobs import QueueRefused, Resources
from autoeval.runners.outcome import Outcome, missing
from autoeval.runners.slurm import Slurm, SlurmOptions, outside_of_a_job
from autoeval.runners.worker_process import worker_environment
from autoeval.tasks.openicl import Task
from recorder.files import write_json


def slurm_runner(
    partition: str | None = None,
    quotatype: str | None = None,
    qos: str | None = None,
    account: str | None = None,
    gres: str = "gpu",
    minutes: int | None = None,
    num_cpus: int | None = None,
    memory_gb: float | None = None,
    extra: Sequence[str] = (),
    max_num_workers: int = 1,
    max_queued: int = 500,
    retry: int = 0,
    debug: bool = False,
    environment: Mapping[str, str] | None = None,
) -> ClusterRunner | SrunRunner:
    """``quotatype`` (an option of some sites) and ``extra`` (words for sbatch) are given only when they are set.
    ``minutes``, ``num_cpus`` and ``memory_gb`` are for each task. Raises ``ValueError`` naming what is wrong."""
    for name, value in (("minutes", minutes), ("num_cpus", num_cpus), ("memory_gb", memory_gb)):
        if value is not None and value <= 0:
            raise ValueError(f"SlurmRunner: {name} is {value}, expected more than 0")
    options = slurm_options(partition, quotatype, qos, account, gres, extra)
    resources = Resources(0, num_cpus, memory_gb, minutes)
    if debug:
        return SrunRunner(options, resources, environment)
    return ClusterRunner(
        Slurm(options),
        max_num_workers=max_num_workers,
        max_queued=max_queued,
        retry=retry,
        resources=resources,
        environment=environment,
    )


def slurm_options(
    partition: str | None = None,
    quotatype: str | None = None,
    qos: str | None = None,
    account: str | None = None,
    gres: str = "gpu",
    extra: Sequence[str] = (),
) -> SlurmOptions:
    """Raises ``ValueError`` for an ``extra`` that is no list of options."""
    if isinstance(extra, str) or not all(isinstance(word, str) and word.startswith("-") for word in extra):
        raise ValueError(f"SlurmRunner: extra is {extra!r}, expected a list of options such as '--exclude=node7'")
    return SlurmOptions(partition or None, quotatype or None, qos or None, account or None, gres, tuple(extra))


class SrunRunner:
    """One task after the other, its output not redirected: for seeing what goes wrong."""

    def __init__(self, options: SlurmOptions, resources: Resources, environment: Mapping[str, str] | None) -> None:
        self._options, self._resources = options, resources
        self._environment = outside_of_a_job({**worker_environment(), **(environment or {})})

    def settle(self, folder: Path) -> None:
        """srun's jobs end with it."""

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        outcomes = []
        for task, path in zip(tasks, configs, strict=True):
            write_json(path, task.cfg)
            wanted = Resources(
                task.num_gpus, self._resources.num_cpus, self._resources.memory_gb, self._resources.minutes
            )
            flags = [*self._options.flags(), "--nodes=1", "--ntasks=1", "--unbuffered", f"--job-name={task.name[:200]}"]
            command = ["srun", *flags, *self._options.wanted(wanted), *shlex.split(task.get_command(path))]
            try:
                code = subprocess.run(command, env=self._environment, check=False).returncode
            except FileNotFoundError:
                raise QueueRefused("srun: there is no such program on this machine; is this a Slurm cluster?") from None
            outcomes.append(Outcome(task, code, 1, None, missing(task)))
        return outcomes
