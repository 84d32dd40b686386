"""``LocalRunner``: tasks as processes on this machine, as many at once as there are workers and GPU slots."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from autoeval.runners.outcome import Outcome, missing
from autoeval.runners.worker_process import worker_environment
from autoeval.tasks import BAD_INPUT
from autoeval.tasks.openicl import Task
from recorder.files import write_json

logger = logging.getLogger(__name__)


class LocalRunner:
    """Runs tasks in processes of their own. Ctrl-C ends them all; so does the death of this process.

    ``max_num_workers`` tasks at once; at most ``max_workers_per_gpu`` of them on one GPU. A task that fails is tried
    ``retry`` times more, unless its input is wrong. ``debug``: one after the other in this process, output not
    redirected. On a machine without GPUs all tasks run on the CPU.
    """

    def __init__(
        self,
        max_num_workers: int = 1,
        max_workers_per_gpu: int = 1,
        retry: int = 0,
        debug: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (("max_num_workers", max_num_workers), ("max_workers_per_gpu", max_workers_per_gpu)):
            if value < 1:
                raise ValueError(f"LocalRunner: {name} is {value}, expected at least 1")
        self.max_num_workers, self.retry, self.debug = max_num_workers, retry, debug
        self._environment = {**worker_environment(), **(environment or {})}
        self._slots = dict.fromkeys(visible_gpus(), max_workers_per_gpu)
        self._free = threading.Condition()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def settle(self, folder: Path) -> None:
        """Nothing: the tasks of a former process have ended with it."""

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        """Run all; outcomes in the order of ``tasks``. ``configs`` is where each task's configuration is written.

        Raises ``ValueError`` before anything runs when a task wants more GPUs than there are.
        """
        for task in tasks:
            if self._slots and task.num_gpus > len(self._slots):
                raise ValueError(
                    f"{task.name} wants {task.num_gpus} GPUs; there are {len(self._slots)} (CUDA_VISIBLE_DEVICES)"
                )
        for task, path in zip(tasks, configs, strict=True):
            write_json(path, task.cfg)
        if self.debug:
            return [self._here(task) for task in tasks]
        return self._in_processes(tasks, configs)

    def _here(self, task: Task) -> Outcome:
        with self._with_environment():
            code = task.run()
        return Outcome(task, code, 1, None, missing(task))

    def _in_processes(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        from tqdm import tqdm

        pool = ThreadPoolExecutor(self.max_num_workers)
        futures = [pool.submit(self._attempts, task, path) for task, path in zip(tasks, configs, strict=True)]
        try:
            with tqdm(total=len(futures), unit="task", disable=None, leave=False, file=sys.stderr) as bar:
                waiting = set(futures)
                while waiting:
                    # With a timeout, so that Ctrl-C is noticed at once on every platform.
                    done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    bar.update(len(done))
            return [future.result() for future in futures]
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _attempts(self, task: Task, config: Path) -> Outcome:
        tries = 0
        while True:
            tries += 1
            with self._gpus(task.num_gpus) as gpus:
                code = self._process(task, config, gpus, first=tries == 1)
            outcome = Outcome(task, code, tries, task.get_log_path(), missing(task))
            if outcome.ok or self._stopped or code == BAD_INPUT or tries > self.retry:
                level = logging.INFO if outcome.ok else logging.ERROR
                logger.log(level, "%s %s", task.name, "done" if outcome.ok else outcome.reason)
                return outcome
            logger.warning("%s %s; trying again", task.name, outcome.reason)

    def _process(self, task: Task, config: Path, gpus: Sequence[str], *, first: bool) -> int:
        log = task.get_log_path()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self._environment, "AUTOEVAL_ENDS_WITH_INPUT": "1"}
        if self._slots:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if self.max_num_workers > 1 and "OMP_NUM_THREADS" not in environment:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.max_num_workers))
        with log.open("wb" if first else "ab") as output:
            with self._free:
                if self._stopped:
                    return -signal.SIGTERM
                # A session of its own: Ctrl-C reaches this process alone, which ends the tasks in order. The input is
                # a pipe that nobody writes: it closes when this process dies, whatever kills it.
                process = subprocess.Popen(
                    shlex.split(task.get_command(config)),
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._free:
                    self._running.discard(process)
                if process.stdin:
                    process.stdin.close()

    @contextlib.contextmanager
    def _gpus(self, count: int) -> Iterator[list[str]]:
        """``count`` GPUs with a free slot; none on a machine that has none. The slots come back on any exit."""
        wanted = count if self._slots else 0
        with self._free:
            self._free.wait_for(lambda: self._stopped or sum(free > 0 for free in self._slots.values()) >= wanted)
            taken = [gpu for gpu, free in self._slots.items() if free > 0][:wanted]
            for gpu in taken:
                self._slots[gpu] -= 1
        try:
            yield taken
        finally:
            with self._free:
                for gpu in taken:
                    self._slots[gpu] += 1
                self._free.notify_all()

    def _stop(self) -> None:
        """End every process group: asked first, killed after three seconds."""
        with self._free:
            self._stopped = True
            running = list(self._running)
            self._free.notify_all()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=3.0)

    @contextlib.contextmanager
    def _with_environment(self) -> Iterator[None]:
        added = {key: value for key, value in self._environment.items() if key not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for key in added:
                os.environ.pop(key, None)


def visible_gpus() -> list[str]:
    """Ids from ``CUDA_VISIBLE_DEVICES`` (numbers, or UUIDs as they are), else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [part.strip() for part in visible.split(",") if part.strip()]
        # CUDA itself stops at the first id that is no device.
        stop = next((place for place, part in enumerate(ids) if re.fullmatch(r"-\d+", part)), len(ids))
        return ids[:stop]
    # In a container /proc may be the host's or hidden; the device files are what can be used.
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
