"""Tasks as job arrays on a cluster: submitted, watched, tried again, cancelled, and found again by a later process.

Every array is written down (``autoeval.runners.arrays``), so after a kill ``settle`` waits for what still runs.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoeval.runners.arrays import Array, Arrays, End, Member, close, read_arrays
from autoeval.runners.jobs import JobState, Queue, QueueError, Resources
from autoeval.runners.outcome import Outcome, missing
from autoeval.tasks import BAD_INPUT
from autoeval.tasks.openicl import Task
from recorder.files import write_json

logger = logging.getLogger(__name__)

LEAST_WAIT, GREATEST_WAIT = 0.5, 15.0  # seconds between two questions to the queue
SUBMIT_TRIES = 6
CANCEL_SECONDS = 30.0


@dataclass(eq=False)
class _Trying:
    """One task on its way; ``queued`` while its member is in the queue."""

    task: Task
    member: Member
    config: Path
    tries: int = 0
    queued: bool = False


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
        self._arrays = Arrays(queue, at_once=max_num_workers, environment=environment, clock=clock)
        self._clock, self._sleep = clock, sleep
        self._open: list[Array] = []  # submitted, or just being, and not over

    def launch(self, tasks: Sequence[Task], configs: Sequence[Path]) -> list[Outcome]:
        """Run all; outcomes in the order of ``tasks``. ``configs`` is where each task's configuration is written.

        Raises ``QueueRefused`` when the queue takes no such job, ``QueueError`` when it cannot be reached at all. On
        Ctrl-C everything submitted is cancelled.
        """
        tried = []
        for task, path in zip(tasks, configs, strict=True):
            write_json(path, task.cfg)
            command = shlex.split(task.get_command(path.absolute()))
            record = path.with_suffix(".record.json")
            member = Member(task.name, command, task.get_log_path(), record, _whole(task))
            tried.append(_Trying(task, member, path))
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
                queued = [one for one in tried if one.queued]
                while ready and len(queued) < self.max_queued:
                    some = _alike(ready)[: self.max_queued - len(queued) if self.queue.arrays else 1]
                    self._submit(some)
                    ready = [one for one in ready if one not in some]
                    queued += some
                before = len(outcomes)
                for one, end in self._ended(queued):
                    one.queued = False
                    outcome = _outcome(one, end)
                    if not outcome.ok and end.again and one.tries <= self.retry and outcome.code != BAD_INPUT:
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
        for one in some:
            one.member.log.parent.mkdir(parents=True, exist_ok=True)
            if one.tries == 0:
                one.member.log.unlink(missing_ok=True)
        members = [one.member for one in some]
        array = self._arrays.write_down(members, some[0].config.parent, self._wanted(some[0].task))
        self._open.append(array)
        job = self._submitted(array)
        for one in some:
            one.tries += 1
            one.queued = True
        logger.info("job %s: %d task%s submitted", job, len(some), "" if len(some) == 1 else "s")

    def _wanted(self, task: Task) -> Resources:
        return Resources(task.num_gpus, self._resources.num_cpus, self._resources.memory_gb, self._resources.minutes)

    def _submitted(self, array: Array) -> str:
        wait = 1.0
        for attempt in range(SUBMIT_TRIES):
            try:
                return self._arrays.submit(array)
            except QueueError as error:
                if attempt == SUBMIT_TRIES - 1:
                    raise QueueError(f"{error} (after {SUBMIT_TRIES} tries)") from error
                logger.warning("%s; trying again in %.0f s", error, wait)
                self._sleep(wait)
                wait = min(2 * wait, 60.0)
        raise AssertionError("unreachable")

    def _ended(self, queued: Sequence[_Trying]) -> list[tuple[_Trying, End]]:
        by_member: dict[Member, _Trying] = {one.member: one for one in queued}
        states: list[tuple[Member, JobState]] = self._arrays.look(list(by_member))
        ends = [(by_member[member], self._arrays.end_of(member, state)) for member, state in states]
        return [(one, end) for one, end in ends if end is not None]

    def _close_ended(self, tried: Sequence[_Trying]) -> None:
        waited_for = {one.member.array for one in tried if one.queued}
        for array in [array for array in self._open if array not in waited_for]:
            self._close(array)

    def _close(self, array: Array) -> None:
        self._open.remove(array)
        close(array)

    def _cancel(self) -> None:
        """Everything that was submitted; waits until the queue says that it has ended."""
        for array in [array for array in self._open if array.job is None]:
            with contextlib.suppress(QueueError):  # it was just being submitted
                array.job = self.queue.find(array.key)
            if array.job is None:
                self._open.remove(array)
        if not self._open:
            return
        logger.info("cancelling job %s", self._names())
        self.queue.cancel([array.job for array in self._open if array.job])
        deadline = self._clock() + CANCEL_SECONDS
        while self._clock() < deadline:
            for array in self._arrays.over(self._open):
                self._close(array)
            if not self._open:
                return
            self._sleep(0.5)
        logger.warning("job %s: not seen to end", self._names())

    def _names(self) -> str:
        return ", ".join(str(array.job) for array in self._open)

    def settle(self, folder: Path) -> None:
        """Wait for what a former process submitted, whose manifests lie in ``folder``, and which still runs."""
        for array in read_arrays(folder):
            array.job = array.job or self._found(array.key)
            if array.job is None:
                close(array)
            else:
                self._open.append(array)
        wait = LEAST_WAIT
        try:
            while self._open:
                for array in self._arrays.over(self._open):
                    self._close(array)
                if not self._open:
                    return
                if wait == LEAST_WAIT:
                    logger.info("job %s of the former process still runs; waiting for it", self._names())
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


def _whole(task: Task) -> Callable[[], bool]:
    return lambda: not missing(task)


def _outcome(one: _Trying, end: End) -> Outcome:
    return Outcome(one.task, end.code, one.tries, one.task.get_log_path(), missing(one.task), end.why)


def _alike(ready: Sequence[_Trying]) -> list[_Trying]:
    """The first, and all that want as many GPUs."""
    return [one for one in ready if one.task.num_gpus == ready[0].task.num_gpus]
