"""Tasks as job arrays on a cluster: submitted, watched, tried again, cancelled, and found again by a later process.

Every array is written down, with a key that the queue keeps too, before it is submitted. So a process that was killed
at any moment leaves nothing behind that the next one does not find: ``settle`` waits for what still runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.runners.jobs import JobArray, JobState, Queue, QueueError, Resources, task_log
from autoeval.runners.outcome import Outcome, missing
from autoeval.tasks.openicl import BAD_INPUT, Task
from recorder.files import write_json

logger = logging.getLogger(__name__)

LEAST_WAIT, GREATEST_WAIT = 0.5, 15.0  # seconds between two questions to the queue
HELD_SECONDS = 60.0  # a held job is given so long to be released
RECORD_SECONDS = 20.0  # for a record to appear on a slow network file system, after the queue has said that it ended
SUBMIT_TRIES = 6
CANCEL_SECONDS = 30.0


@dataclass
class _Trying:
    """One task on its way: which array has it, as which number."""

    task: Task
    config: Path
    record: Path
    tries: int = 0
    job: str = ""
    number: int = 0
    held_since: float | None = None
    ended_since: float | None = None


class ClusterRunner:
    """Runs tasks through ``queue``.

    ``max_num_workers`` limits how many of an array run at once, ``max_queued`` how many tasks are in the queue. A task
    is tried ``retry`` times more when it failed by no fault of its input; a time-out, a lost node, a preemption and too
    little memory count as such, a cancellation does not.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        max_num_workers: int = 1,
        max_queued: int = 500,
        retry: int = 0,
        resources: Resources | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for name, value in (("max_num_workers", max_num_workers), ("max_queued", max_queued)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.queue, self.max_num_workers, self.retry = queue, max_num_workers, retry
        # Without arrays there is no throttle but ours.
        self.max_queued = max_queued if queue.arrays else min(max_queued, max_num_workers)
        self._resources = resources or Resources()
        self._environment = dict(environment or {})
        self._clock, self._sleep = clock, sleep
        self._jobs: dict[str, int] = {}  # size by id, of arrays that are not over
        self._manifests: dict[str, Path] = {}
        self._silent = False  # the queue did not answer the last time

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        """Run all; outcomes in the order of ``tasks``. ``configs`` is where each task's configuration is written.

        Raises ``QueueRefused`` when the queue takes no such job, ``QueueError`` when it cannot be reached at all. On
        Ctrl-C everything submitted is cancelled.
        """
        tried = []
        for task, path in zip(tasks, configs, strict=True):
            write_json(path, task.cfg)
            tried.append(_Trying(task, path, path.with_suffix(".record.json")))
        if not tried:
            return []
        try:
            return self._all(tried)
        except BaseException:
            self._cancel()
            raise

    def _all(self, tried: Sequence[_Trying]) -> list[Outcome]:
        from tqdm import tqdm

        outcomes: dict[int, Outcome] = {}
        ready = list(tried)  # to be submitted, in this order
        wait = LEAST_WAIT
        with tqdm(total=len(tried), unit="task", disable=None, leave=False, file=sys.stderr) as bar:
            while len(outcomes) < len(tried):
                queued = [one for one in tried if one.job]
                while ready and len(queued) < self.max_queued:
                    some = _alike(ready)[: self.max_queued - len(queued) if self.queue.arrays else 1]
                    self._submit(some)
                    ready = [one for one in ready if one not in some]
                    queued += some
                before = len(outcomes)
                for one, state in self._look(queued):
                    outcome = self._outcome(one, state)
                    if outcome is None:
                        continue
                    one.job = ""
                    if self._again(one, outcome, state):
                        logger.warning("%s %s; trying again", one.task.name, outcome.reason)
                        ready.append(one)
                    else:
                        level = logging.INFO if outcome.ok else logging.ERROR
                        logger.log(level, "%s %s", one.task.name, "done" if outcome.ok else outcome.reason)
                        outcomes[tried.index(one)] = outcome
                self._close_ended(tried)
                bar.update(len(outcomes) - before)
                if len(outcomes) > before or ready:
                    wait = LEAST_WAIT
                if len(outcomes) < len(tried):
                    self._sleep(wait)
                    wait = min(wait * 1.5, GREATEST_WAIT)
        return [outcomes[place] for place in range(len(tried))]

    def _submit(self, some: Sequence[_Trying]) -> None:
        """One array of ``some``, all of which want the same."""
        key = f"autoeval-{uuid.uuid4().hex}"
        manifest = some[0].config.parent / f"{key}.array.json"
        for one in some:
            one.record.unlink(missing_ok=True)
        content = {
            "key": key,
            "job": None,
            "tasks": [
                {
                    "name": one.task.name,
                    "command": shlex.split(one.task.get_command(one.config.absolute())),
                    "log": str(one.task.get_log_path().absolute()),
                    "record": str(one.record.absolute()),
                }
                for one in some
            ],
        }
        for one in some:
            log = one.task.get_log_path()
            log.parent.mkdir(parents=True, exist_ok=True)
            if one.tries == 0:
                log.unlink(missing_ok=True)
        write_json(manifest, content)
        array = JobArray(
            key=key,
            name=some[0].task.name,
            command=[sys.executable, "-m", "autoeval.runners.array_task", str(manifest.absolute())],
            size=len(some),
            resources=self._wanted(some[0].task),
            log=manifest.with_suffix(".log").absolute(),
            at_once=min(self.max_num_workers, len(some)),
            environment=self._environment,
        )
        job = self._submitted(array)
        write_json(manifest, {**content, "job": job})
        self._jobs[job], self._manifests[job] = len(some), manifest
        for number, one in enumerate(some):
            one.tries += 1
            one.job, one.number, one.held_since, one.ended_since = job, number, None, None
        logger.info("job %s: %d task%s submitted", job, len(some), "" if len(some) == 1 else "s")

    def _wanted(self, task: Task) -> Resources:
        return Resources(task.num_gpus, self._resources.num_cpus, self._resources.memory_gb, self._resources.minutes)

    def _submitted(self, array: JobArray) -> str:
        """Its id. A submission whose answer was lost is found again by its key rather than repeated."""
        wait = 1.0
        for attempt in range(SUBMIT_TRIES):
            try:
                if attempt and (job := self.queue.find(array.key)) is not None:
                    return job
                return self.queue.submit(array)
            except QueueError as error:
                if attempt == SUBMIT_TRIES - 1:
                    raise QueueError(f"{error} (after {SUBMIT_TRIES} tries)") from error
                logger.warning("%s; trying again in %.0f s", error, wait)
                self._sleep(wait)
                wait = min(2 * wait, 60.0)
        raise AssertionError("unreachable")

    def _look(self, queued: Sequence[_Trying]) -> list[tuple[_Trying, JobState]]:
        states = self.queue.poll({job: self._jobs[job] for job in {one.job for one in queued}})
        silent = any(state.kind == "unknown" for found in states.values() for state in found)
        if silent and not self._silent:
            reason = next(state.reason for found in states.values() for state in found if state.kind == "unknown")
            logger.warning("%s; waiting until it does, what runs goes on", reason)
        elif self._silent and not silent:
            logger.info("the queue answers again")
        self._silent = silent
        return [(one, states[one.job][one.number]) for one in queued]

    def _outcome(self, one: _Trying, state: JobState) -> Outcome | None:
        """How ``one`` ended; ``None`` while it has not, or while that cannot be known."""
        now = self._clock()
        if state.kind in ("held", "waiting") and _record(one.record) is not None and not missing(one.task):
            # A controller that was killed forgets a start, and may start it again or hold it for ever.
            self.queue.cancel([f"{one.job}_{one.number}"])
            return self._made(one, 0, "")
        if state.kind == "held":
            one.held_since = one.held_since or now
            if now - one.held_since < HELD_SECONDS:
                return None
            self.queue.cancel([f"{one.job}_{one.number}"])
            return self._made(one, 1, f"held by the queue: {state.reason or state.name}; cancelled")
        one.held_since = None
        if not state.over:
            one.ended_since = None
            return None
        record = _record(one.record)
        if record is None:
            if (word := self.queue.told(self._log(one))) is not None:
                return self._made(one, 1, word)
            if state.name in ("", "COMPLETED", "FAILED"):
                # The file may be on its way. Outputs that are all there need no witness.
                one.ended_since = one.ended_since or now
                if missing(one.task) and now - one.ended_since < RECORD_SECONDS:
                    return None
                whole = not missing(one.task)
                return self._made(one, 0 if whole else 1, "" if whole else f"{state.name or 'lost'}: it left no record")
            return self._made(one, 1, _told(state))
        code = int(record["code"])
        odd = state.kind == "ended" and state.name not in ("COMPLETED", "FAILED")
        return self._made(one, code or (1 if odd else 0), _told(state) if odd else "")

    def _made(self, one: _Trying, code: int, why: str) -> Outcome:
        left = missing(one.task)
        if not left and code != BAD_INPUT:
            code, why = 0, ""  # the outputs are the truth
        return Outcome(one.task, code, one.tries, one.task.get_log_path(), left, why)

    def _log(self, one: _Trying) -> str:
        """What the queue itself wrote about it."""
        manifest = self._manifests[one.job]
        with contextlib.suppress(OSError):
            return task_log(manifest.with_suffix(".log"), one.number).read_text(errors="replace")
        return ""

    def _again(self, one: _Trying, outcome: Outcome, state: JobState) -> bool:
        if outcome.ok or one.tries > self.retry or outcome.code == BAD_INPUT:
            return False
        return state.again

    def _close_ended(self, tried: Sequence[_Trying]) -> None:
        for job in [job for job in self._jobs if not any(one.job == job for one in tried)]:
            del self._jobs[job]
            _close(self._manifests.pop(job))

    def _cancel(self) -> None:
        """Everything that was submitted; waits until the queue says that it has ended."""
        if not self._jobs:
            return
        logger.info("cancelling job %s", ", ".join(self._jobs))
        self.queue.cancel(list(self._jobs))
        deadline = self._clock() + CANCEL_SECONDS
        while self._clock() < deadline:
            states = self.queue.poll(self._jobs)
            for job in [job for job, found in states.items() if all(state.over for state in found)]:
                del self._jobs[job]
                _close(self._manifests.pop(job))
            if not self._jobs:
                return
            self._sleep(0.5)
        logger.warning("job %s: not seen to end", ", ".join(self._jobs))

    def settle(self, folder: Path) -> None:
        """Wait for what a former process submitted, whose manifests lie in ``folder``, and which still runs."""
        for manifest in sorted(folder.glob("*.array.json")):
            content = json.loads(manifest.read_text(encoding="utf-8"))
            if content.get("closed"):
                continue
            job = content["job"] or self._found(content["key"])
            if job is not None:
                self._jobs[job], self._manifests[job] = len(content["tasks"]), manifest
            else:
                _close(manifest)
        if not self._jobs:
            return
        wait = LEAST_WAIT
        try:
            while True:
                states = self.queue.poll(self._jobs)
                for job in [job for job, found in states.items() if all(state.over for state in found)]:
                    del self._jobs[job]
                    _close(self._manifests.pop(job))
                if not self._jobs:
                    return
                if wait == LEAST_WAIT:
                    logger.info("job %s of the former process still runs; waiting for it", ", ".join(self._jobs))
                self._sleep(wait)
                wait = min(wait * 1.5, GREATEST_WAIT)
        except BaseException:
            self._cancel()
            raise

    def _found(self, key: str) -> str | None:
        for attempt in range(SUBMIT_TRIES):
            try:
                return self.queue.find(key)
            except QueueError as error:
                if attempt == SUBMIT_TRIES - 1:
                    raise
                logger.warning("%s; asking again", error)
                self._sleep(2.0**attempt)
        return None


def _alike(ready: Sequence[_Trying]) -> list[_Trying]:
    """The first, and all that want as many GPUs."""
    return [one for one in ready if one.task.num_gpus == ready[0].task.num_gpus]


def _told(state: JobState) -> str:
    return f"{state.name} ({state.reason})" if state.reason and state.reason != state.name else state.name


def _record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _close(manifest: Path) -> None:
    write_json(manifest, {**json.loads(manifest.read_text(encoding="utf-8")), "closed": True})
