"""The loop: what is complete gets evaluated, what is evaluated gets recorded, and nothing waits for anything else.

One thread decides (``Daemon.run``); watchers, the worker's reader and the views' process only put messages into its
queue. The worker computes, ``recorder.refresh`` builds the views and publishes, each in a process of its own: this one
stays small and can be killed at any moment.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from autoeval.at_work import AtWork
from autoeval.clusters import Clusters
from autoeval.ending import side_by_side
from autoeval.heartbeat import Doing
from autoeval.reload import Reload, Wanted
from autoeval.runners.cluster_worker import ClusterWorker
from autoeval.runners.worker_process import LocalWorker
from autoeval.signals import Signals
from autoeval.views import Views
from autoeval.watched_run import Entry, WatchedRun
from autoeval.work_directories import WorkDirectories
from recorder.results import ResultFileError

logger = logging.getLogger(__name__)

IDLE_WORKER_SECONDS = 60.0  # a worker holds a model library and a device: let go when there is nothing to do


@dataclass(frozen=True)
class _Message:
    kind: str  # scan | copied | worker | views | stop | reload | configuration
    sender: Any = None
    content: Any = None


class Daemon:
    """Runs ``runs`` until their end iterations are done (``once``: until all is done that is complete now, or would be by
    resting).

    Several runs take turns: the one that has waited longest for its turn goes first. ``directories`` are their work
    directories, which this process holds; ``read`` reads the configuration anew, in any thread, and raises
    ``ConfigError``.
    """

    def __init__(
        self,
        runs: Sequence[WatchedRun],
        signals: Signals,
        directories: WorkDirectories,
        read: Callable[[], list[Wanted]],
        *,
        once: bool = False,
    ):
        self.runs = list(runs)  # in the order of their turns
        self.once = once
        # Not queue.Queue: its put, called from a signal handler, waits for the lock that an interrupted get holds.
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._worker: LocalWorker | None = None
        self._clusters = Clusters(self._on_event_thread)
        self._current: AtWork | None = None
        self._idle_since = time.monotonic()
        self._worker_log = self.runs[0].logs / "worker.log"
        self._views = {run: Views(run, self._on_views_end) for run in self.runs}
        self._stopping = threading.Event()
        self._signals = signals
        self._directories = directories
        self._heart = directories.heart
        self._reload = Reload(
            read, directories, lambda found: self._messages.put(_Message("configuration", content=found))
        )
        self._options = self.runs[0].options

    def run(self) -> int:
        """Returns 0 when all is recorded, 1 when something failed for good, 128 + n when ended by signal n."""
        in_order = False
        self._signals.on_stop = lambda number: self._messages.put(_Message("stop", content=number))
        self._signals.on_reload = lambda: self._messages.put(_Message("reload"))
        try:
            status = self._loop()
            in_order = True
            return status
        finally:
            self._stopping.set()
            self._heart.beat(Doing("stopping"))
            worker = self._worker
            # After a trouble of this machine jobs go on elsewhere: the next start, in a moment, takes them up again.
            clusters = partial(self._clusters.close, leave=not in_order)
            side_by_side(
                *([worker.close] if worker else []), clusters, *(views.close for views in self._views.values())
            )
            for run in self.runs:
                run.close(keep_pins=not in_order)
            self._signals.reload_wanted = self._signals.reload_wanted or self._reload.pending  # for the next life
            self._signals.on_stop = self._signals.on_reload = None

    @property
    def wanted(self) -> list[Wanted]:
        """The runs as they are, with those that a trouble kept from being made anew."""
        found = {one.key: one for one in (Wanted(run.config, run.tasks) for run in self.runs)}
        return list((found | {one.key: one for one in self._reload.unmade}).values())

    def _on_views_end(self, views: Views, content: Any) -> None:
        self._messages.put(_Message("views", views, content))

    def _on_event_thread(self, worker: LocalWorker | ClusterWorker, event: dict[str, Any]) -> None:
        self._messages.put(_Message("worker", worker, event))

    def _loop(self) -> int:
        for run in self.runs:
            self._begin_to_watch(run)
        if self._signals.reload_wanted:
            self._signals.reload_wanted = False
            self._reload.begin()
        while True:
            self._end_hung_worker()
            self._reload_if_due()
            self._start_next()
            self._start_views()
            if self._finished():
                failed = any(run.anything_failed() or self._views[run].stale for run in self.runs)
                return 1 if failed else 0
            if self._heart.beat(self._doing()):
                self._directories.check()
            try:
                message = self._messages.get(timeout=self._patience())
            except queue.Empty:
                self._on_silence()
                continue
            if message.kind == "stop":
                name = signal.Signals(message.content).name
                logger.info("%s: stopping; what is on disk is whole, starting again goes on from here", name)
                return 128 + message.content
            self._handle(message)

    def _begin_to_watch(self, run: WatchedRun) -> None:
        if run.copies is not None:
            run.copies.on_change = lambda: self._messages.put(_Message("copied", run))
        if not self.once:
            run.watcher.start()
            threading.Thread(target=self._forward_wakes, args=(run,), daemon=True).start()
        run.scan()
        self._clusters.settle(run)
        # An earlier daemon may have been killed before its views were rebuilt, and people are told of the start.
        run.changed = bool(run.ledger.checkpoints() or run.config.channels)

    def _forward_wakes(self, run: WatchedRun) -> None:
        while not self._stopping.is_set() and run in self._views:
            if run.watcher.wait(timeout=5.0):
                self._messages.put(_Message("scan", run))

    def _patience(self) -> float | None:
        """Seconds until there is something to do without any message; ``None`` is for ever."""
        waits = [self._heart.due_in(), *(views.retry_in() for views in self._views.values())]
        waits += [run.settles_in for run in self.runs] if self.once else []
        if self._worker is not None and self._current is None:
            waits.append(self._idle_since + IDLE_WORKER_SECONDS - time.monotonic())
        if self._current is not None and not self._clusters.serves(self._current.run):
            waits.append(self._current.time_left(self._current.run.config.runner))
        known = [max(0.05, wait) for wait in waits if wait is not None]
        return min(known) if known else None

    def _end_hung_worker(self) -> None:
        """What is killed here is tried again like any worker that died."""
        if self._worker is None or self._current is None or self._clusters.serves(self._current.run):
            return
        if (reason := self._current.overdue(self._current.run.config.runner)) is not None:
            self._worker.close(grace_seconds=0.0)
            self._on_worker_death(f"{reason} and was ended")

    def _on_silence(self) -> None:
        for run in self.runs if self.once else ():  # nobody watches
            if run.settles_in is not None and run.settles_in <= 0:
                run.scan()
        idle = self._worker is not None and self._current is None
        if idle and time.monotonic() - self._idle_since >= IDLE_WORKER_SECONDS:
            assert self._worker is not None
            self._worker.close()
            self._worker = None

    def _handle(self, message: _Message) -> None:
        if message.kind == "reload":
            self._reload.begin()
        elif message.kind == "configuration":
            current = self._current
            at_work = f"{current.entry.ref.model} iteration {current.entry.ref.iteration}" if current else None
            self._reload.take(message.content, self.runs, at_work)
        elif message.kind == "scan":
            if message.sender not in self._views:
                return  # it is watched no more
            message.sender.scan()
            idle = self._current is None and not self._clusters.serves(message.sender)
            if message.sender.watcher.save_in_progress and idle:
                self._worker_at_hand()  # its imports take seconds, which the save takes too
                self._idle_since = time.monotonic()
        elif message.kind == "copied":
            if message.sender in self._views:
                message.sender.take_in_copies()
        elif message.kind == "views":
            message.sender.ended(message.content)
        elif message.sender is self._worker or self._clusters.has(message.sender):
            # A former one's last words mean nothing.
            self._on_worker_event(message.content)
        self._look_ahead()

    def _worker_at_hand(self) -> LocalWorker:
        if self._worker is None:
            self._worker = LocalWorker(self._on_event_thread, self._worker_log, self.runs[0].config.logs.limits)
            if any(run.task_plan.helm is not None and not self._clusters.serves(run) for run in self.runs):
                self._worker.import_helm()
        return self._worker

    def _worker_for(self, run: WatchedRun) -> LocalWorker | ClusterWorker:
        return self._clusters.of(run) if self._clusters.serves(run) else self._worker_at_hand()

    def _start_next(self) -> None:
        if self._current is not None:
            return
        if (found := self._next()) is None:
            for run in self.runs:
                run.tell_what_settles() if self.once else run.tell_what_is_waited_for()
            return
        run, entry = found
        self.runs.append(self.runs.pop(self.runs.index(run)))
        self._current = AtWork(run, entry)
        plan = run.begin(entry)
        count = len(run.tasks)
        logger.info("%s iteration %d: evaluation begins (%d tasks)", entry.ref.model, entry.ref.iteration, count)
        self._worker_for(run).submit(plan)

    def _next(self) -> tuple[WatchedRun, Entry] | None:
        """Whose turn it is."""
        for run in self.runs:
            if (entry := run.take_next()) is not None:
                return run, entry
        return None

    def _look_ahead(self) -> None:
        """While a model is asked, the checkpoint that would be next is converted: one at a time."""
        current = self._current
        if current is None or not current.loaded or current.has_looked_ahead:
            return
        if (found := self._next()) is not None:
            current.has_looked_ahead = True
            self._worker_for(found[0]).convert_ahead(found[0].begin_ahead(found[1]))

    def _start_views(self) -> None:
        for run, views in self._views.items():
            if run.changed:
                views.want()
            run.changed = False
            views.finished = self._has_ended(run)
            views.start_if_wanted()

    def _on_worker_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "exited":
            code = event["returncode"]
            self._on_worker_death(f"ended with signal {-code}" if code < 0 else f"ended with code {code}")
            return
        if kind == "broken":
            raise event["error"]
        if kind == "ready":
            logger.info("the worker is ready (process %d)", event["pid"])
        if self._current is None:
            return
        self._current.heard(event)
        run, entry = self._current.run, self._current.entry
        ref = entry.ref
        if kind == "converting":
            logger.info("%s iteration %d: conversion begins", ref.model, ref.iteration)
        elif kind == "converted":
            run.ledger.set_state(ref, "converted")
            logger.info("%s iteration %d: converted in %.1f s", ref.model, ref.iteration, event["seconds"])
            run.ledger.set_state(ref, "evaluating")
        elif kind == "task_started":
            run.ledger.note_task(ref, event["task"], "running", version=event["version"], log=event["log"])
        elif kind == "task_done":
            try:
                run.ingest(entry, event["task"], event["version"], event["result"])
            except ResultFileError as error:
                self._note_failure(run, entry, event["task"], event["version"], str(error), None)
        elif kind == "task_failed":
            self._note_failure(run, entry, event["task"], event["version"], event["error"], event["log"])
        elif kind in ("checkpoint_failed", "checkpoint_missed"):
            logger.info("the log of %s iteration %d: %s", ref.model, ref.iteration, event["log"])
            self._end_checkpoint(run, entry, kind.removeprefix("checkpoint_"), event["error"])
        elif kind == "checkpoint_done":
            self._end_checkpoint(run, entry, "evaluated")

    def _note_failure(
        self, run: WatchedRun, entry: Entry, task: str, version: str, error: str, log: str | None
    ) -> None:
        logger.error("%s iteration %d: task %s failed: %s", entry.ref.model, entry.ref.iteration, task, error)
        run.ledger.note_task(entry.ref, task, "failed", version=version, error=error, log=log)

    def _end_checkpoint(self, run: WatchedRun, entry: Entry, state: str, error: str | None = None) -> None:
        run.finish(entry, state, error)
        self._current = None
        self._idle_since = time.monotonic()

    def _on_worker_death(self, how: str) -> None:
        """The worker is gone: try the checkpoint again with a new one; what it had finished is kept."""
        worker, self._worker = self._worker, None
        current = self._current
        if current is None or worker is None or self._clusters.serves(current.run):
            return  # it had nothing to do, or converted ahead while jobs are at work on another run
        self._current = None
        run, entry, step = current.run, current.entry, current.step
        deaths = entry.deaths[step] = entry.deaths.get(step, 0) + 1
        error = f"the worker process {how} during '{step}' ({deaths} times; log: {worker.log})"
        logger.error("%s iteration %d: %s", entry.ref.model, entry.ref.iteration, error)
        entry.being_evaluated = False
        if deaths < run.config.runner.attempts or len(current.running) > 1:
            return  # the entry is still waiting; of several tasks each is tried by itself
        if not current.running:
            self._end_checkpoint(run, entry, "failed", error)
        else:
            version = dict(run.tasks)[step]
            self._note_failure(run, entry, step, version, error, str(worker.log))

    def _doing(self) -> Doing:
        if (current := self._current) is None:
            return Doing("publishing" if any(views.at_work() for views in self._views.values()) else "idle")
        ref = current.entry.ref
        state = "evaluating" if current.loaded else "converting"
        return Doing(state, ref.model, ref.iteration, tuple(current.running))

    def _reload_if_due(self) -> None:
        if not self._reload.is_due(self._current is not None):
            return
        if self._reload.needs_no_worker and self._worker is not None:
            self._worker.close()
            self._worker = None
        if self._reload.needs_no_worker:
            self._clusters.close(leave=True)
        options = self._options
        for run in self._reload.make(self.runs, self._views, lambda new: WatchedRun(new.config, options, new.tasks)):
            self._views.setdefault(run, Views(run, self._on_views_end))
            self._begin_to_watch(run)

    def _has_ended(self, run: WatchedRun) -> bool:
        """Whether nothing of ``run`` will be evaluated any more."""
        at_work = self._current is not None and self._current.run is run
        return not at_work and not run.waiting() and (run.settles_in is None if self.once else run.reached_the_end())

    def _finished(self) -> bool:
        return all(map(self._has_ended, self.runs)) and not any(views.busy() for views in self._views.values())
