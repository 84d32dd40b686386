"""What a cluster's queue is asked for and what it answers, the same for each: submit, poll, cancel, find again.

A queue's word is never all there is: whether a task is done is decided by its output files and by the record that
``autoeval.runners.array_task`` leaves beside them. So a job that ran twice, or whose end nobody saw, does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from autoeval.runners.worker_process import worker_environment

_PASSED_ON = re.compile(  # HF_TOKEN is not needed: nothing is downloaded
    r"(PYTHONPATH|HF_(?!TOKEN)\w+|TRANSFORMERS_\w+|TORCH_HOME|TOKENIZERS_PARALLELISM|OMP_NUM_THREADS|AUTOEVAL_\w+)"
)
# waiting, running: it will go on by itself; held: it will not, until somebody does something; ended: see ``name``;
# unknown: the queue cannot be asked now; gone: the queue knows no such job (any more).
Kind = Literal["waiting", "running", "held", "ended", "unknown", "gone"]


class QueueError(RuntimeError):
    """The queue cannot be reached, or is full: another try later may help."""


class QueueRefused(ValueError):
    """The queue does not take such a job: the configuration is wrong, another try is of no use."""


@dataclass(frozen=True)
class Resources:
    """Of one task. ``minutes`` limits its time; ``None`` leaves a thing to the queue's own default."""

    num_gpus: int = 0
    num_cpus: int | None = None
    memory_gb: float | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class JobArray:
    """Tasks that want the same, submitted as one. ``key`` is unique: the queue keeps it, and finds the job by it.

    ``command`` runs one task when the task's number is appended. ``at_once`` limits how many run at a time.
    ``environment`` is set for them besides what every task gets.
    """

    key: str
    name: str
    command: Sequence[str]
    size: int
    resources: Resources
    log: Path  # of what goes wrong around a task; each task's own is ``task_log``
    at_once: int = 1
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def task_log(self, number: int) -> Path:
        return task_log(self.log, number)


def passed_on() -> dict[str, str]:
    """What another machine needs of this process's environment; all else is that machine's own."""
    return {name: value for name, value in worker_environment().items() if _PASSED_ON.fullmatch(name)}


def task_log(log: Path, number: int) -> Path:
    """``<name>.<number>.log`` beside ``log``."""
    return log.with_suffix(f".{number}{log.suffix}")


@dataclass(frozen=True)
class JobState:
    """``name``: the queue's own word for it (TIMEOUT, PREEMPTED, …); ``reason``: why it waits, is held or ended.
    ``again``: if it failed, another try may help."""

    kind: Kind
    name: str = ""
    reason: str = ""
    again: bool = False

    @property
    def over(self) -> bool:
        return self.kind in ("ended", "gone")


class Queue(Protocol):
    """One cluster. ``poll`` never raises: a queue that cannot be reached says ``unknown``, which is not ``gone``."""

    arrays: bool  # whether a job may have several tasks

    def submit(self, array: JobArray) -> str:
        """The job's id. Raises ``QueueError`` when it may be tried again, ``QueueRefused`` when not."""
        ...

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        """The state of each task of each job; ``jobs`` has the size by id."""
        ...

    def cancel(self, jobs: Iterable[str]) -> None:
        """Ask for their end; that they have ended is for ``poll`` to say."""
        ...

    def told(self, log: str) -> str | None:
        """A better word for how a task ended than its state, from what the queue wrote into its log, or ``None``."""
        ...

    def find(self, key: str) -> str | None:
        """The id of the job that was submitted with ``key``. Raises ``QueueError`` when that cannot be known now."""
        ...
