"""Which runs are evaluated by jobs of a queue, and the worker of each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autoeval.dealing import dealt_out
from autoeval.ending import side_by_side
from autoeval.runner_sections import LocalRunner, RunnerSection
from autoeval.runners.cluster_worker import ClusterWorker
from autoeval.runners.places import Place
from autoeval.tasks.plan import EvaluationPlan
from autoeval.tasks.shares import Dealt
from autoeval.watched_run import WatchedRun


def needs_queue(section: RunnerSection) -> bool:
    """Whether what ``section`` asks for is more than the one process that the daemon keeps by itself."""
    return not isinstance(section, LocalRunner) or section.detach or section.max_num_workers > 1


class Clusters:
    """A worker for every run that needs one: its jobs are in the run's own ledger."""

    def __init__(self, on_event: Callable[[Any, dict[str, Any]], None]) -> None:
        self._on_event = on_event
        self._workers: dict[WatchedRun, ClusterWorker] = {}

    def serves(self, run: WatchedRun) -> bool:
        config = run.config
        return needs_queue(config.runner) or config.conversion_runner is not None

    def of(self, run: WatchedRun) -> ClusterWorker:
        if run not in self._workers:
            self._workers[run] = self._made(run)
        return self._workers[run]

    def has(self, worker: Any) -> bool:
        return worker in self._workers.values()

    def settle(self, run: WatchedRun) -> None:
        """After the first scan: what a former daemon has submitted is taken up again in its turn, or cancelled."""
        if jobs := run.ledger.jobs(run.config.model_name):
            wanted = {entry.ref.fingerprint for entry in run.waiting()} if self.serves(run) else set()
            if run.trouble and self.serves(run):  # nothing is known of the store yet: they may well be wanted
                wanted = {row.fingerprint for row in jobs}
            self.of(run).settle(wanted)

    def close(self, *, leave: bool = False) -> None:
        """All of them; jobs of sections with ``detach`` are left in any case."""
        workers, self._workers = self._workers, {}
        side_by_side(*(_closing(run, worker, leave) for run, worker in workers.items()))

    def _made(self, run: WatchedRun) -> ClusterWorker:
        config = run.config

        def deal(plan: EvaluationPlan, names: Sequence[str]) -> Dealt:
            return dealt_out(run.ledger, plan, names, config.runner.max_num_workers)

        return ClusterWorker(
            self._on_event,
            run.ledger,
            config.model_name,
            _place(run, config.runner),
            # By default on the same queue, without the GPUs that a conversion has no use for.
            _place(run, config.conversion_runner)
            if config.conversion_runner
            else _place(run, config.runner, num_gpus=0),
            deal,
            limits=_Live(run),
        )


class _Live:
    """The limits of a run's runner section as they are now: a reload may change them."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run

    @property
    def task_time_limit(self) -> float | None:
        return self._run.config.runner.task_time_limit

    @property
    def heartbeat_timeout(self) -> float | None:
        return self._run.config.runner.heartbeat_timeout

    @property
    def attempts(self) -> int:
        return self._run.config.runner.attempts


def _place(run: WatchedRun, section: RunnerSection, **changes: Any) -> Place:
    options = {**section.options(), **changes}
    if isinstance(section, LocalRunner):
        options["directory"] = str(run.config.work_dir / "queue")
    return Place(options)


def _closing(run: WatchedRun, worker: ClusterWorker, leave: bool) -> Callable[[], None]:
    return lambda: worker.close(leave=leave or run.config.runner.detach)
