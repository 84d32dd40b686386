"""Where work runs: worker and task processes on this machine, or job arrays on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
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
