"""The views of one run, made by ``recorder.refresh`` in processes of their own: one rebuilds the report and the
leaderboard and sends messages, one publishes to Weights & Biases. Neither waits for the other, nor anything for them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoeval.ending import end, side_by_side
from autoeval.log_files import rotate_if_large
from autoeval.planning import write_settings
from autoeval.runners.worker_process import HOME
from autoeval.watched_run import WatchedRun
from recorder.messages.channel import Told, to_environment

logger = logging.getLogger(__name__)

ATTEMPTS_AT_END = 3
LONGEST_WAIT_AT_END_SECONDS = 60.0


class _Part:
    """Keeps one ``recorder.refresh`` process with ``flag`` going, never two, and tries again after a failure.

    ``on_end`` is called with (part, return code, output) from another thread.
    """

    def __init__(self, flag: str, on_end: Callable[[_Part, int, str], None]):
        self.flag = flag
        self.wanted = False
        self._on_end = on_end
        self._process: subprocess.Popen[str] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._told: str | None = None

    def busy(self) -> bool:
        """Whether something is under way, or soon will be: what is pending for longer is left to the next start."""
        soon = self._not_before - time.monotonic() <= LONGEST_WAIT_AT_END_SECONDS
        return self._process is not None or (self.wanted and self._failures < ATTEMPTS_AT_END and soon)

    def due(self) -> bool:
        return self.wanted and self._process is None and time.monotonic() >= self._not_before

    def retry_in(self) -> float | None:
        if self._process is not None or not self.wanted:
            return None
        return self._not_before - time.monotonic()

    def may_start_now(self) -> None:
        self._not_before = 0.0

    def start(self, run: WatchedRun, environment: Mapping[str, str], log: Path) -> None:
        self.wanted = False
        command = [sys.executable, "-m", "recorder.refresh", self.flag, "--work-dir", str(run.config.work_dir)]
        command += ["--settings", str(write_settings(run.config))]
        training = run.config.megatron.log_path if run.config.megatron else None
        if training is not None and self.flag == "--views":  # first the training log, which the report draws
            follow = [sys.executable, "-m", "autoeval.diagnosis.follow", "--log", str(training)]
            follow += ["--work-dir", str(run.config.work_dir), "--model", run.config.model_name]
            command = [*follow, "--then", *command]
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate_if_large(log, run.config.logs.limits)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=HOME,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._await, args=(self._process,), daemon=True).start()

    def _await(self, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate()
        self._on_end(self, process.returncode, output)

    def ended(self, returncode: int, answer: Mapping[str, Any], log: Path) -> None:
        """Take note of how it went: anything that is pending is tried again, what is wrong is told once."""
        self._process = None
        if returncode == 0 and not answer.get("pending") and not answer.get("messages_pending"):
            self._failures, self._told = 0, None
            return
        self._failures += 1
        problem = str(answer.get("error") or f"recorder.refresh {self.flag} ended with code {returncode}")
        level = logging.DEBUG if problem == self._told else logging.WARNING
        logger.log(level, "views: %s (log: %s); will be tried again", problem, log)
        self._told = problem
        self.wanted = True
        wait = answer.get("retry_in")
        self._not_before = time.monotonic() + (min(600.0, 2.0 * 4**self._failures) if wait is None else float(wait))

    def close(self) -> None:
        """Give a process at work a moment: it writes files whole, so ending it loses nothing."""
        if self._process is not None:
            end(self._process, wait_seconds=2.0, term_seconds=0.5)

    @property
    def at_work(self) -> bool:
        return self._process is not None


class Views:
    """Used by one thread. ``on_end`` is called with (this, what ended) from another, and must bring that to ``ended``.

    ``run`` may be replaced by the same run, made anew.
    """

    def __init__(self, run: WatchedRun, on_end: Callable[[Views, tuple[_Part, int, str]], None]):
        self.run = run
        self.stale = False  # the last attempt to rebuild report and leaderboard failed
        self.finished = False  # nothing will be evaluated any more: people are told
        self._began = time.time()
        self._files = _Part("--views", lambda *content: on_end(self, content))
        self._publisher = _Part("--publish", lambda *content: on_end(self, content))

    @property
    def _parts(self) -> tuple[_Part, ...]:
        """Those that are kept going: the mode may change while the daemon runs."""
        if self.run.config.wandb.mode == "disabled" and not self._publisher.at_work:
            return (self._files,)
        return (self._files, self._publisher)

    def want(self) -> None:
        """There is something new. The publisher itself knows whether its next attempt is due, or the key another."""
        for part in self._parts:
            part.wanted = True
        self._publisher.may_start_now()

    def busy(self) -> bool:
        return any(part.busy() for part in self._parts)

    def at_work(self) -> bool:
        return any(part.at_work for part in self._parts)

    def retry_in(self) -> float | None:
        waits = [wait for part in self._parts if (wait := part.retry_in()) is not None]
        return min(waits, default=None)

    def start_if_wanted(self) -> None:
        due = [part for part in self._parts if part.due()]
        if due:
            self.run.mark_recorded()  # first, so that the report shows the state that it brings about
        for part in due:
            told = self._what_is_told() if part is self._files else {}
            part.start(self.run, os.environ | told, self._log(part))

    def _log(self, part: _Part) -> Path:
        return self.run.logs / ("refresh.log" if part is self._files else "publish.log")

    def _what_is_told(self) -> dict[str, str]:
        """Addresses of messages go by the environment of this one process: no file and no command line has them."""
        config = self.run.config
        return to_environment(
            Told(
                channels=config.channels,
                model=config.model_name,
                watching=self.run.watcher.where,
                tasks=tuple(name for name, _ in self.run.tasks),
                since=self._began,
                finished=self.finished,
            )
        )

    def ended(self, content: tuple[_Part, int, str]) -> None:
        part, returncode, output = content
        if part is self._files:
            self.stale = returncode != 0
            if not self.stale:
                config = self.run.config
                logger.info("%s: report and leaderboard are up to date in %s", config.model_name, config.work_dir)
        part.ended(returncode, _last_json(output), self._log(part))

    def close(self) -> None:
        side_by_side(*(part.close for part in self._parts))
        if self._publisher.wanted and self.run.config.wandb.mode != "disabled":
            logger.warning("what W&B has not taken is kept: it is published at the next start, or with --sync-wandb")


def _last_json(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    return answer if isinstance(answer, dict) else {}
