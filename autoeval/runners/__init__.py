"""Where work runs: worker and task processes on this machine, or job arrays on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from autoeval.runners.jobs import Queue, Resources
    from autoeval.runners.outcome import Outcome
    from autoeval.tasks.openicl import Task

# Keys of OpenCompass's configurations that are no runner's business here.
_PASSED_OVER = ("type", "task", "lark_bot_url")
RUNNERS = ("LocalRunner", "SlurmRunner", "SlurmSequentialRunner", "DLCRunner", "RayRunner")


class Runner(Protocol):
    """Runs the tasks of one stage."""

    def settle(self, folder: Path) -> None:
        """Wait for what a former process left running, of which ``folder`` tells."""
        ...

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        """Run all; outcomes in the order of ``tasks``."""
        ...


def build_runner(
    options: Mapping[str, Any], *, debug: bool = False, environment: Mapping[str, str] | None = None
) -> Runner:
    """From ``dict(type="LocalRunner", max_num_workers=4, task=...)``. Raises ``ValueError`` naming what is wrong."""
    from autoeval.datasets.names import class_name

    kind = class_name(options.get("type", "LocalRunner"))
    keywords = {key: value for key, value in options.items() if key not in _PASSED_OVER}
    keywords |= {"debug": debug or bool(keywords.get("debug")), "environment": environment}
    try:
        if kind == "LocalRunner":
            from autoeval.runners.local import LocalRunner

            return LocalRunner(**keywords)
        if kind in ("SlurmRunner", "SlurmSequentialRunner"):
            from autoeval.runners.slurm_runner import slurm_runner

            return slurm_runner(**keywords)
        if kind == "DLCRunner":
            from autoeval.runners.dlc_runner import dlc_runner

            return dlc_runner(**keywords)
        if kind == "RayRunner":
            from autoeval.runners.ray_runner import ray_runner

            return ray_runner(**keywords)
    except TypeError as error:
        raise ValueError(f"runner {kind}: {error}") from error
    raise ValueError(f"runner {kind}: there is no such runner here (known: {', '.join(RUNNERS)})")


_SLURM = ("partition", "quotatype", "qos", "account", "gres", "extra")


def queue_from(section: Mapping[str, Any]) -> Queue:
    """The queue that a ``runner`` section of evaluator.yaml names: its ``type`` (local, slurm, dlc, ray) with that
    type's keys; all others are passed over. ``local`` needs a ``directory`` for the queue's files.

    Raises ``ValueError`` (``QueueRefused`` is one) for what is wrong with the section or lacks on this machine,
    ``QueueError`` for a cluster that does not answer now.
    """
    kind = section.get("type", "local")
    if kind == "local":
        from autoeval.runners.local_queue import LocalQueue

        return LocalQueue(Path(section["directory"]), tethered=not section.get("detach"))
    if kind == "slurm":
        from autoeval.runners.slurm import Slurm
        from autoeval.runners.slurm_runner import slurm_options

        return Slurm(slurm_options(**{key: section[key] for key in _SLURM if section.get(key) is not None}))
    if kind == "dlc":
        from autoeval.runners.dlc_runner import dlc_queue

        return dlc_queue(section["aliyun_cfg"])
    if kind == "ray":
        from autoeval.runners.ray_queue import RayQueue

        return RayQueue(section.get("address") or "auto")
    raise ValueError(f"runner: there is no queue of the type {kind!r} (known: local, slurm, dlc, ray)")


def resources_from(section: Mapping[str, Any]) -> Resources:
    """What each job of a ``runner`` section asks for."""
    from autoeval.runners.jobs import Resources

    return Resources(
        num_gpus=section.get("num_gpus") or 0,
        num_cpus=section.get("num_cpus"),
        memory_gb=section.get("memory_gb"),
        minutes=section.get("minutes"),
    )
