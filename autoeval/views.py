"""The views of one run (report, leaderboard, messages, Weights & Biases), made by ``recorder.refresh``, a process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from autoeval.planning import write_settings
from autoeval.runners.worker_process import HOME
from autoeval.watched_run import WatchedRun
from recorder.messages.channel import Told, to_environment

logger = logging.getLogger(__name__)

ATTEMPTS_AT_END = 3


class Views:
    """Keeps one ``recorder.refresh`` process going for a run, never two, and tries again after a failure.

    Used by one thread. ``on_end`` is called with (return code, output) from another, and must bring it to ``ended``.
    """

    def __init__(self, run: WatchedRun, on_end: Callable[[WatchedRun, tuple[int, str]], None]):
        self.run = run
        self.wanted = False
        self.stale = False  # the last attempt to rebuild report and leaderboard failed
        self.finished = False  # nothing will be evaluated any more: people are told
        self._began = time.time()
        self._on_end = on_end
        self._process: subprocess.Popen[str] | None = None
        self._failures = 0
        self._not_before = 0.0

    def busy(self) -> bool:
        return self._process is not None or (self.wanted and self._failures < ATTEMPTS_AT_END)

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
        command += ["--settings", str(write_settings(self.run.config))]
        log = self.run.logs / "refresh.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=HOME,
                env=os.environ | self._what_is_told(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._await, args=(self._process,), daemon=True).start()

    def _what_is_told(self) -> dict[str, str]:
        """Addresses of messages go by the environment of this one process: no file and no command line has them."""
        config = self.run.config
        return to_environment(
            Told(
                channels=config.channels,
                model=config.model_name,
                watching=str(self.run.watcher.checkpoint_path),
                tasks=tuple(name for name, _ in self.run.tasks),
                since=self._began,
                finished=self.finished,
            )
        )

    def _await(self, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate()
        self._on_end(self.run, (process.returncode, output))

    def ended(self, content: tuple[int, str]) -> None:
        returncode, output = content
        self._process = None
        answer = _last_json(output)
        pending = int(answer.get("pending", 0)) if self.run.config.wandb.mode != "disabled" else 0
        pending += int(answer.get("messages_pending", 0))
        self.stale = returncode != 0
        if not self.stale:
            config = self.run.config
            logger.info("%s: report and leaderboard are up to date in %s", config.model_name, config.work_dir)
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


def _last_json(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    return answer if isinstance(answer, dict) else {}
