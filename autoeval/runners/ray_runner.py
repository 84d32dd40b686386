"""``RayRunner``: the tasks of a stage on a Ray cluster, KubeRay's among them."""

from __future__ import annotations

from collections.abc import Mapping

from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.jobs import Resources
from autoeval.runners.ray_queue import RayQueue


def ray_runner(
    address: str = "auto",
    num_cpus: int | None = None,
    memory_gb: float | None = None,
    max_num_workers: int = 1,
    retry: int = 0,
    debug: bool = False,
    environment: Mapping[str, str] | None = None,
) -> ClusterRunner:
    """``num_cpus`` and ``memory_gb`` are reserved for each task. Raises ``ValueError`` or ``QueueError``."""
    del debug  # what a task prints is in its log
    return ClusterRunner(
        RayQueue(address),
        max_num_workers=max_num_workers,
        retry=retry,
        resources=Resources(0, num_cpus, memory_gb, None),
        environment=environment,
    )
