"""The loop: what is complete gets evaluated, what is evaluated gets recorded, and nothing waits for anything else.

One thread decides (``Daemon.run``); watchers, the worker's reader and the views' process only put messages into its
queue. The worker computes, ``recorder.refresh`` builds the views and publishes, each in a process of its own: this one
stays small and can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.runners.local import HOME, LocalWorker
from autoeval.watched_run import Entry, WatchedRun

logger = logging.getLogger(__name__)

IDLE_WORKER_SECONDS = 60.0  # a worker holds a model library and a device: let go when there is nothing to do
VIEWS_ATTEMPTS_AT_END = 3


@dataclass(frozen=True)
class _Message:
    kind: str  # scan | worker | views | stop
    sender: Any = None
    content: Any = None


class Daemon:
    """Runs ``runs`` until their end iterations are done (``once``: until all that is complete now is done)."""

    def __init__(self, runs: Sequence[WatchedRun], *, once: bool = False):
        self.runs = list(runs)
        self.once = once
        self._messages: queue.Queue[_Message] = queue.Queue()
        self._worker: LocalWorker | None = None
        self._current: tuple[WatchedRun, Entry] | None = None
        self._task: str | None = None  # what the worker is at
        self._idle_since = time.monotonic()
        self._views: dict[WatchedRun, _Views] = {run: _Views(run, self._messages) for run in self.runs}
        self._stopping = threading.Event()

    def run(self) -> int:
        """Returns 0 when all is recorded, 1 when something failed for good, 128 + n when ended by signal n."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._loop()
        finally:
            self._stopping.set()
            if self._worker is not None:
                self._worker.close()
            for run in self.runs:
                self._views[run].close()
                run.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._messages.put(_Message("stop", content=number))

    def _loop(self) -> int:
        for run in self.runs:
            if not self.once:
                run.watcher.start()
                threading.Thread(target=self._forward_wakes, args=(run,), daemon=True).start()
            run.scan()
            if run.ledger.checkpoints():  # an earlier daemon may have been killed before its views were rebuilt
                self._views[run].wanted = True
        while True:
            self._start_next()
            for views in self._views.values():
                views.start_if_wanted()
            if self._finished():
                failed = any(run.anything_failed() or self._views[run].stale for run in self.runs)
                return 1 if failed else 0
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

    def _forward_wakes(self, run: WatchedRun) -> None:
        while not self._stopping.is_set():
            if run.watcher.wait(timeout=5.0):
                self._messages.put(_Message("scan", run))

    def _patience(self) -> float | None:
        """Seconds until there is something to do without any message; ``None`` is for ever."""
        waits = [views.retry_in() for views in self._views.values()]
        if self._worker is not None and self._current is None:
            waits.append(self._idle_since + IDLE_WORKER_SECONDS - time.monotonic())
        known = [max(0.05, wait) for wait in waits if wait is not None]
        return min(known) if known else None

    def _on_silence(self) -> None:
        idle = self._worker is not None and self._current is None
        if idle and time.monotonic() - self._idle_since >= IDLE_WORKER_SECONDS:
            assert self._worker is not None
            self._worker.close()
            self._worker = None

    def _handle(self, message: _Message) -> None:
        if message.kind == "scan":
            message.sender.scan()
        elif message.kind == "views":
            self._views[message.sender].ended(message.content)
        elif message.sender is self._worker:  # a former worker's last words mean nothing
            self._on_worker_event(message.content)

    def _start_next(self) -> None:
        if self._current is not None:
            return
        choice = next(((run, entry) for run in self.runs for entry in run.pending()), None)
        if choice is None:
            return
        run, entry = choice
        self._current, self._task = choice, None
        entry.being_evaluated = True
        run.ledger.set_state(entry.ref, "evaluating")
        for task, version in run.tasks:
            run.ledger.note_task(entry.ref, task, "queued", version=version)
        if self._worker is None:
            self._worker = LocalWorker(self._on_event_thread, run.logs / "worker.log")
        logger.info(
            "%s iteration %d: evaluation begins (%d tasks)", entry.ref.model, entry.ref.iteration, len(run.tasks)
        )
        self._worker.submit(run.make_plan(entry))

    def _on_event_thread(self, worker: LocalWorker, event: dict[str, Any]) -> None:
        self._messages.put(_Message("worker", worker, event))

    def _on_worker_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "exited":
            self._on_worker_death(event["returncode"])
            return
        if self._current is None:
            return
        run, entry = self._current
        ref = entry.ref
        if kind == "converted":
            run.ledger.set_state(ref, "converted")
            logger.info("%s iteration %d: converted in %.1f s", ref.model, ref.iteration, event["seconds"])
            run.ledger.set_state(ref, "evaluating")
        elif kind == "task_started":
            self._task = event["task"]
            run.ledger.note_task(ref, event["task"], "running", version=event["version"], log=event["log"])
        elif kind == "task_done":
            run.ingest(entry, event["task"], event["version"], event["result"])
        elif kind == "task_failed":
            self._note_failure(run, entry, event["task"], event["version"], event["error"], event["log"])
        elif kind in ("checkpoint_failed", "checkpoint_missed"):
            state = kind.removeprefix("checkpoint_")
            logger.error(
                "%s iteration %d %s: %s (log: %s)", ref.model, ref.iteration, state, event["error"], event["log"]
            )
            self._end_checkpoint(run, entry, state, event["error"])
        elif kind == "checkpoint_done":
            self._end_checkpoint(run, entry, "evaluated")

    def _note_failure(
        self, run: WatchedRun, entry: Entry, task: str, version: str, error: str, log: str | None
    ) -> None:
        logger.error("%s iteration %d: task %s failed: %s", entry.ref.model, entry.ref.iteration, task, error)
        run.ledger.note_task(entry.ref, task, "failed", version=version, error=error, log=log)

    def _end_checkpoint(self, run: WatchedRun, entry: Entry, state: str, error: str | None = None) -> None:
        run.finish(entry, state, error)
        self._views[run].wanted = True
        self._current, self._task = None, None
        self._idle_since = time.monotonic()

    def _on_worker_death(self, returncode: int) -> None:
        """The worker is gone: try the checkpoint again with a new one; what it had finished is kept."""
        worker, self._worker = self._worker, None
        if self._current is None or worker is None:
            return
        run, entry = self._current
        step = self._task or "convert"
        deaths = entry.deaths[step] = entry.deaths.get(step, 0) + 1
        how = f"signal {-returncode}" if returncode < 0 else f"code {returncode}"
        error = f"the worker process ended with {how} during '{step}' ({deaths} times; log: {worker.log})"
        logger.error("%s iteration %d: %s", entry.ref.model, entry.ref.iteration, error)
        self._current, self._task = None, None
        entry.being_evaluated = False
        if deaths < run.config.runner.max_attempts:
            return  # the entry is still pending
        if step == "convert":
            self._end_checkpoint(run, entry, "failed", error)
        else:
            version = dict(run.tasks)[step]
            self._note_failure(run, entry, step, version, error, str(worker.log))

    def _finished(self) -> bool:
        if self._current is not None or any(run.pending() for run in self.runs):
            return False
        if any(views.busy() for views in self._views.values()):
            return False
        return self.once or all(run.reached_the_end() for run in self.runs)


class _Views:
    """Keeps one ``recorder.refresh`` process going for a run, never two, and tries again after a failure."""

    def __init__(self, run: WatchedRun, messages: queue.Queue[_Message]):
        self.run = run
        self.wanted = False
        self.stale = False  # the last attempt to rebuild report and leaderboard failed
        self._messages = messages
        self._process: subprocess.Popen[str] | None = None
        self._failures = 0
        self._not_before = 0.0

    def busy(self) -> bool:
        return self._process is not None or (self.wanted and self._failures < VIEWS_ATTEMPTS_AT_END)

    def retry_in(self) -> float | None:
        if self._process is not None or not self.wanted:
            return None
        return self._not_before - time.monotonic()

    def start_if_wanted(self) -> None:
        if not self.wanted or self._process is not None or time.monotonic() < self._not_before:
            return
        self.wanted = False
        self.run.mark_recorded()  # first, so that the report shows the state that it brings about
        command = [sys.executable, "-m", "recorder.refresh", "--work-dir", str(self.run.config.work_dir)]
        command += ["--settings", str(self.run.write_settings())]
        log = self.run.logs / "refresh.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=HOME,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._await, args=(self._process,), daemon=True).start()

    def _await(self, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate()
        self._messages.put(_Message("views", self.run, (process.returncode, output)))

    def ended(self, content: tuple[int, str]) -> None:
        returncode, output = content
        self._process = None
        answer = _last_json(output)
        pending = int(answer.get("pending", 0)) if self.run.config.wandb.mode != "disabled" else 0
        self.stale = returncode != 0
        if not self.stale:
            logger.info("%s: report and leaderboard are up to date in %s", self.run.config.model_name, _work_dir(self))
        if returncode == 0 and pending == 0:
            self._failures = 0
            return
        self._failures += 1
        problem = answer.get("error") or f"recorder.refresh ended with code {returncode}"
        logger.warning("views: %s (log: %s); will be tried again", problem, self.run.logs / "refresh.log")
        self.wanted = True
        self._not_before = time.monotonic() + min(600.0, 2.0 * 4**self._failures)

    def close(self) -> None:
        """Give a process at work a moment: it writes files whole, so ending it loses nothing."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3.0)
            if self._process.poll() is None:
                self._process.terminate()


def _work_dir(views: _Views) -> Path:
    return views.run.config.work_dir


def _last_json(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    return answer if isinstance(answer, dict) else {}
