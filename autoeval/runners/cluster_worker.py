"""The daemon's worker on a cluster: the same orders and the same events as ``LocalWorker``, computed by jobs of a queue.

A checkpoint is converted by one job; then its tasks are dealt out to as many as there are slots, each of which loads the
model once (``autoeval.tasks.job``). What they tell is read from their event files and handed on, so the daemon need not
know where anything ran. Jobs are in the ledger before they are submitted: a daemon that was killed takes them up again.
One thread of this object asks the queue; a queue that does not answer is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from autoeval.runners.arrays import End
from autoeval.runners.jobs import JobState, QueueError
from autoeval.runners.parts import LAST_WORDS, Batch, Part, new_batch
from autoeval.runners.places import Bookkeeper, Place
from autoeval.runners.progress import Limits, Progress
from autoeval.runners.rounds import Aftermath, Round, after_death, count_death, load_seconds_key, step_of
from autoeval.tasks.conversion import is_converted
from autoeval.tasks.plan import EvaluationPlan, load_plan
from autoeval.tasks.shares import Dealt
from autoeval.tasks.work import existing_result, set_aside_other_saves
from recorder.ledger import Ledger

logger = logging.getLogger(__name__)

READ_SECONDS = 0.5  # between two looks at the event files
LEAST_WAIT, GREATEST_WAIT = 0.5, 15.0  # seconds between two questions to the queue
SILENT_END_SECONDS = 20.0  # for last words to appear on a slow network file system
LEAVING_SECONDS = 60.0  # for jobs that have nothing left to do; those still there are cancelled again as often
ASK_AGAIN_SECONDS = 60.0  # to end a job that hangs: the queue may not have heard it
CLOSE_SECONDS = 4.0


OnEvent = Callable[["ClusterWorker", dict[str, Any]], None]


class ClusterWorker:
    """``deal`` deals out so many tasks of a plan; ``limits.attempts`` is how often a step is begun. Events arrive
    at ``on_event`` from a thread of this object: those of ``LocalWorker``, and ``broken`` with the ``error`` (of the
    queue's refusal, or of the ledger) after which this object does nothing more.
    """

    def __init__(
        self,
        on_event: OnEvent,
        ledger: Ledger,
        model: str,
        evaluation: Place,
        conversion: Place,
        deal: Callable[[EvaluationPlan, Sequence[str]], Dealt],
        *,
        limits: Limits,
    ) -> None:
        self._on_event, self._ledger, self._model = on_event, ledger, model
        self._place = {"evaluate": evaluation, "convert": conversion}
        self._deal, self._limits = deal, limits
        self._books = Bookkeeper(ledger, [evaluation, conversion])
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._round: Round | None = None
        self._batches: list[Batch] = []
        self._over: dict[Batch, float] = {}  # since when nobody waits for them any more
        self._wait, self._next_look = LEAST_WAIT, 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self._thread.start()

    def settle(self, wanted: Collection[str]) -> None:
        """Cancel what a former daemon has submitted for checkpoints that are not ``wanted`` (fingerprints) any more."""
        self._orders.put(lambda: self._books.cancel_others(self._ledger.jobs(self._model), wanted))

    def submit(self, plan: Path) -> None:
        """Evaluate the checkpoint of a plan file, going on with what a former daemon has submitted for it."""
        self._orders.put(lambda: self._begin(load_plan(plan)))

    def convert_ahead(self, plan: EvaluationPlan) -> None:
        """Let the checkpoint of ``plan`` be converted while another one is evaluated."""
        self._orders.put(lambda: self._begin_ahead(plan))

    def close(self, *, leave: bool = False) -> None:
        """End this object within some seconds: its jobs are cancelled, or with ``leave`` go on for the next start."""
        self._orders.put(lambda: self._close(leave))
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.error("the queue does not answer: %s may still run; the next start finds them", self._job_names())

    # All below runs in the thread.

    def _run(self) -> None:
        try:
            while not self._closed:
                busy = self._batches or self._books.to_cancel
                with contextlib.suppress(queue.Empty):
                    self._orders.get(timeout=READ_SECONDS if busy else None)()
                    continue
                self._step()
        except Exception as error:
            logger.debug("the cluster's thread ends", exc_info=True)
            self._on_event(self, {"event": "broken", "error": error})

    def _tell(self, event: str, **details: Any) -> None:
        self._on_event(self, {"event": event, **details})

    def _step(self) -> None:
        self._books.cancel_some()
        for batch in list(self._batches):
            if self._books.submit(batch, self._place_of(batch)):
                self._look_soon()
            for part in batch.alive():
                self._read(batch, part)
        if time.monotonic() >= self._next_look:
            self._look()
        self._end_what_hangs()
        self._advance()
        self._forget_what_is_over()

    def _place_of(self, batch: Batch) -> Place:
        return batch.place or self._place[batch.stage]

    def _look_soon(self) -> None:
        self._wait, self._next_look = LEAST_WAIT, 0.0

    # One checkpoint

    def _begin(self, plan: EvaluationPlan) -> None:
        set_aside_other_saves(plan)
        known = {name: existing_result(plan, name, version) for name, version in plan.expected}
        todo = {name: version for name, version in plan.expected if known[name] is None and name not in plan.skip}
        current = self._round = Round(plan, todo)
        for name, version in plan.expected:
            if known[name] is not None:
                self._tell("task_done", task=name, version=version, result=str(plan.result_path(name)))
        self._take_up(current)
        if not todo:
            self._finish("checkpoint_done")
        elif current.evaluation is None and current.conversion is None:
            if plan.format == "huggingface":
                self._begin_evaluation()
            else:
                current.conversion = self._new_batch("convert", plan, [()])
        self._look_soon()
        self._step()

    def _take_up(self, current: Round) -> None:
        """What is under way for this checkpoint already: submitted by a former daemon, or ahead of its turn."""
        fingerprint = current.plan.checkpoint.fingerprint
        tracked = {array.key for batch in self._batches for array in batch.arrays}
        for row in self._ledger.jobs(self._model):
            if row.fingerprint == fingerprint and row.state == "open" and row.key not in tracked:
                self._books.adopt(row, current.plan, self._batches)
        for batch in self._batches:
            if batch.plan.checkpoint.fingerprint == fingerprint and batch not in self._over:
                setattr(current, {"convert": "conversion", "evaluate": "evaluation"}[batch.stage], batch)
        if current.conversion is not None and current.conversion.converted:
            self._batches.remove(current.conversion)
            if current.evaluation is None and not is_converted(current.plan):
                current.conversion = None  # others' turns came first, and the room was needed
                return
            self._tell("converting")
            self._tell("converted", seconds=0.0)
            if current.evaluation is None and current.todo:
                self._begin_evaluation()

    def _begin_ahead(self, plan: EvaluationPlan) -> None:
        same = [batch for batch in self._batches if batch.plan.checkpoint == plan.checkpoint]
        if plan.format == "huggingface" or same:
            return
        in_use = None if self._round is None else str(self._round.plan.converted)
        batch = self._new_batch("convert", plan, [()], in_use=in_use)
        batch.ahead = True

    def _new_batch(self, stage: Any, plan: EvaluationPlan, parts: Sequence[Sequence[str]], **how: Any) -> Batch:
        batch = new_batch(stage, plan)
        batch.wish(parts, **how)
        self._batches.append(batch)
        return batch

    def _begin_evaluation(self) -> None:
        current = self._round
        assert current is not None
        dealt = self._deal(current.plan, current.left())
        batch = current.evaluation = self._new_batch("evaluate", current.plan, dealt.parts)
        batch.cuts, batch.turns = dealt.cuts, dealt.turns
        current.log_dealt(dealt)

    def _advance(self) -> None:
        current = self._round
        if current is None or current.evaluation is None:
            return
        if not current.left():
            self._finish("checkpoint_done")
        elif not current.evaluation.alive() and not current.evaluation.wishes:
            # All have said that they are done: what is left was claimed by somebody who is gone.
            current.deaths["left over"] += 1
            # Not only by these parts: of those that ended under a former daemon nothing is known here.
            steps = list(current.steps())
            current.evaluation.parts[-1].claims.release_of_all(steps)
            if current.deaths["left over"] < self._limits.attempts:
                current.evaluation.wish([steps])
                return
            for task in current.left():
                self._fail(task, "no job has evaluated it, though all ended well", current.evaluation.parts[-1])

    def _finish(self, event: str, **details: Any) -> None:
        current, self._round = self._round, None
        assert current is not None
        for batch in (current.conversion, current.evaluation):
            if batch is not None and batch in self._batches:
                self._over[batch] = time.monotonic()
                batch.wishes.clear()
                # Who has a model loaded finds nothing left to do and ends by itself, unless all is to be broken off.
                idle = [one for one in batch.alive() if event != "checkpoint_done" or not one.has_loaded()]
                self._books.cancel(idle, self._place_of(batch))
        self._tell(event, **details)

    # What jobs tell

    def _read(self, batch: Batch, part: Part) -> None:
        for event in part.tail.read():
            if event["event"] == "ready" or part.progress is None:
                part.progress = Progress()
            part.progress.heard(event)
            if event["event"] in LAST_WORDS:
                part.last_word, part.ended = event["event"], True
            self._on_event_of(batch, part, event)

    def _on_event_of(self, batch: Batch, part: Part, event: dict[str, Any]) -> None:
        current, kind = self._round, event["event"]
        if current is None or not current.has(batch):
            batch.converted = batch.converted or (batch.stage == "convert" and kind == "checkpoint_done")
        elif kind == "checkpoint_missed":
            self._finish(kind, error=event["error"], log=event["log"])
        elif kind == "checkpoint_failed":
            self._on_failure(batch, part, event)
        elif batch.stage == "convert":
            if kind in ("converting", "converted"):
                self._on_event(self, event)
            elif kind == "checkpoint_done" and current.evaluation is None:
                batch.converted = True
                self._begin_evaluation()
        elif kind == "loaded" and not current.loaded:
            current.loaded = True
            self._ledger.remember(load_seconds_key(self._model), str(event.get("seconds", 0.0)))
            self._on_event(self, event)
        elif kind in ("task_done", "task_failed") and event["task"] in current.left():
            current.ended.add(event["task"])
            self._on_event(self, event)
        elif kind == "share_done":
            current.log_share(event)
        elif kind in ("task_started", "share_started") and current.begins(event):
            self._tell("task_started", **{name: event[name] for name in ("task", "version", "log")})

    def _on_failure(self, batch: Batch, part: Part, event: dict[str, Any]) -> None:
        """A job says itself that it cannot: its model cannot be converted or loaded."""
        if batch.ahead:  # there was less room while another one was in use
            current = self._round
            assert current is not None
            current.conversion = self._new_batch("convert", current.plan, [()])
        elif event.get("again"):
            self._on_death(batch, part, event["error"], again=True)
        else:
            self._finish("checkpoint_failed", error=event["error"], log=event["log"])

    # What the queue says

    def _look(self) -> None:
        for batch in list(self._batches):
            submitted = [part for part in batch.alive() if part.member.array and part.member.array.job]
            if not submitted:
                continue
            try:
                arrays = self._place_of(batch).arrays()
            except QueueError:
                continue  # told by who submits
            for member, state in arrays.look([part.member for part in submitted]):
                part = batch.part_of(member)
                if part.ended:
                    continue
                if state.kind == "running" and part.progress is None:
                    part.progress = Progress()
                elif state.kind == "waiting" and part.progress is not None:
                    part.progress.waits()
                if (end := arrays.end_of(member, state)) is not None:
                    self._on_end(batch, part, end, state)
        self._next_look = time.monotonic() + self._wait
        self._wait = min(1.5 * self._wait, GREATEST_WAIT)

    def _on_end(self, batch: Batch, part: Part, end: End, state: JobState) -> None:
        """A job is over that has not said its last word, as far as was read."""
        self._read(batch, part)
        if part.ended:
            return
        if part.unwanted:
            part.ended = True
        elif part.doomed:
            self._on_death(batch, part, f"{part.doomed} and was cancelled", again=True)
        elif end.code == 0:
            part.silent_since = part.silent_since or time.monotonic()
            if time.monotonic() - part.silent_since > SILENT_END_SECONDS:
                self._on_death(batch, part, "ended without a word", again=True)
        else:
            # Cancelled, and to be tried again: by nobody, but with the daemon that had submitted it.
            nobody = state.name == "CANCELLED" and end.again
            self._on_death(batch, part, end.why or f"ended with code {end.code}", again=end.again, counts=not nobody)

    def _end_what_hangs(self) -> None:
        for batch in self._batches:
            for part in batch.alive():
                if part.progress is None or part.unwanted or time.monotonic() < part.end_asked_until:
                    continue
                if reason := part.doomed or part.progress.overdue(self._limits):
                    part.doomed, part.end_asked_until = reason, time.monotonic() + ASK_AGAIN_SECONDS
                    self._books.stop(part, self._place_of(batch))
                    self._look_soon()

    def _on_death(self, batch: Batch, part: Part, why: str, *, again: bool, counts: bool = True) -> None:
        """A job ended before its work: what was running is to blame, if that ``counts``; what was not begun goes on
        elsewhere."""
        part.ended = True
        current = self._round
        if current is None or not current.has(batch):
            return
        attempts, place = self._limits.attempts, self._place_of(batch)
        step, times, worn_out = step_of(part), 0, False
        if counts:
            times, worn_out = count_death(current, part, attempts, int(place.options.get("max_num_workers", 1)))
        error = f"job {part.member.element}: {why} during '{step}' ({times} times; log: {part.member.log})"
        level = logging.ERROR if counts else logging.INFO
        logger.log(level, "%s iteration %d: %s", self._model, current.plan.checkpoint.iteration, error)
        if batch.stage == "evaluate":
            after = after_death(current, batch, part, again=again, worn_out=worn_out)
        else:
            after = Aftermath(give_up=not again or worn_out)
        if after.give_up:
            self._finish("checkpoint_failed", error=error, log=str(part.member.log))
            return
        for task in after.fail:
            self._fail(task, error, part)
        if after.retry or batch.stage == "convert":
            batch.wish([after.retry], together=after.together)

    def _fail(self, task: str, error: str, part: Part) -> None:
        current = self._round
        assert current is not None
        current.ended.add(task)
        self._tell("task_failed", task=task, version=current.todo[task], error=error, log=str(part.member.log))

    # Ends

    def _forget_what_is_over(self) -> None:
        for batch in list(self._batches):
            for array in list(batch.arrays):
                if all(part.ended for part in batch.parts if part.member.array is array):
                    batch.arrays.remove(array)
                    self._books.ended(array)
            since = self._over.get(batch)
            if since is not None and time.monotonic() - since > LEAVING_SECONDS:
                self._books.cancel(batch.alive(), self._place_of(batch))
                self._over[batch] = time.monotonic()
            done = not batch.arrays and not batch.wishes
            kept = self._round is not None and self._round.has(batch)
            if done and not kept and not (batch.ahead and batch.converted and since is None):
                self._batches.remove(batch)
                self._over.pop(batch, None)

    def _close(self, leave: bool) -> None:
        self._closed = True
        for batch in self._batches:
            for part in batch.alive():
                self._read(batch, part)
        self._round = None
        self._forget_what_is_over()
        if not self._batches:
            return
        if leave:
            logger.info("%s: left to go on; the next start finds them", self._job_names())
            return
        logger.info("cancelling %s", self._job_names())
        for batch in self._batches:
            self._books.cancel(batch.alive(), self._place_of(batch))
        deadline = time.monotonic() + CLOSE_SECONDS - 1.5
        while self._batches and time.monotonic() < deadline:
            self._look()
            for batch in self._batches:
                batch.wishes.clear()
                batch.ahead = False
            self._forget_what_is_over()
            time.sleep(0.2)

    def _job_names(self) -> str:
        jobs = [array.job or array.key for batch in self._batches for array in batch.arrays]
        return f"job {', '.join(jobs)}" if jobs else "no job"
