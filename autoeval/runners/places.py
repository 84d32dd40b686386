"""Where the daemon's jobs run, and the book of them in the ledger."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.runners import queue_from, resources_from
from autoeval.runners.arrays import Array, Arrays
from autoeval.runners.jobs import Queue, QueueError, QueueRefused, Resources
from autoeval.runners.parts import Batch, Part, add_parts, adopted
from autoeval.runners.rounds import essence
from autoeval.tasks.plan import EvaluationPlan
from recorder.ledger import JobRow, Ledger

logger = logging.getLogger(__name__)

LEAST_PAUSE, GREATEST_PAUSE = 1.0, 60.0  # seconds between two submissions that the queue does not answer


class Place:
    """A ``runner`` section as plain values. Its queue is made when it is first needed: a cluster may be away."""

    def __init__(self, options: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Queue] = queue_from) -> None:
        self.options = dict(options)
        self.key = json.dumps(self.options, sort_keys=True)
        self._build = build
        self._arrays: Arrays | None = None
        self._failures, self._not_before = 0, 0.0

    @property
    def resources(self) -> Resources:
        return resources_from(self.options)

    def arrays(self) -> Arrays:
        """Raises ``QueueError`` when the cluster does not answer now, ``QueueRefused`` for what is wrong with the section."""
        if self._arrays is None:
            try:
                made = self._build(self.options)
            except QueueRefused:
                raise
            except ValueError as error:
                raise QueueRefused(str(error)) from error
            self._arrays = Arrays(made, at_once=int(self.options.get("max_num_workers", 1)))
        return self._arrays

    def may_be_asked(self) -> bool:
        return time.monotonic() >= self._not_before

    def answered(self) -> None:
        if self._failures:
            logger.info("the queue takes jobs again")
        self._failures, self._not_before = 0, 0.0

    def failed(self, error: QueueError) -> None:
        """It is left alone for a while."""
        level = logging.DEBUG if self._failures else logging.WARNING
        logger.log(level, "%s; waiting until it can be asked", error)
        self._not_before = time.monotonic() + min(LEAST_PAUSE * 2**self._failures, GREATEST_PAUSE)
        self._failures += 1


class Bookkeeper:
    """Submits and cancels jobs, each noted in the ledger before."""

    def __init__(self, ledger: Ledger, places: Sequence[Place]) -> None:
        self._ledger = ledger
        self._places = {place.key: place for place in places}
        self.to_cancel: list[JobRow] = []

    def place(self, runner: str) -> Place:
        """Of a section as the ledger has it: the configuration may have been changed since."""
        if runner not in self._places:
            self._places[runner] = Place(json.loads(runner))
        return self._places[runner]

    def adopt(self, row: JobRow, plan: EvaluationPlan, batches: list[Batch]) -> None:
        """What a former daemon has submitted for ``plan`` joins ``batches``; what is of no use is cancelled."""
        try:
            array, parts = adopted(Path(row.manifest))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("job %s is not taken up again: %s: %s", row.job or row.key, row.manifest, error)
            self.cancel_others([row], ())
            return
        if any(essence(part.order.plan) != essence(plan) for part in parts):
            logger.info("job %s was for another configuration: cancelled", row.job or row.key)
            self.cancel_others([row], ())
            return
        folder = Path(row.manifest).parent
        batch = next((one for one in batches if one.folder == folder), None)
        if batch is None:
            order = parts[0].order
            batch = Batch(order.stage, plan, folder, place=self.place(row.runner), ahead=order.in_use is not None)
            batch.cuts, batch.turns = order.cuts, order.turns
            batches.append(batch)
        array.job = row.job
        batch.arrays.append(array)
        batch.parts += parts
        where = f"{row.model} iteration {row.iteration}"
        logger.info("%s: job %s of a former daemon is taken up again (%s)", where, row.job or row.key, row.stage)

    def submit(self, batch: Batch, place: Place) -> bool:
        """What of ``batch`` is to be submitted and can be now; whether there was any. Raises ``QueueRefused``."""
        waiting = [array for array in batch.arrays if array.job is None]
        if not (waiting or batch.wishes) or not place.may_be_asked():
            return False
        try:
            arrays = place.arrays()
            while batch.wishes:
                wish = batch.wishes[0]
                made = add_parts(batch, wish.parts, arrays, place.resources, together=wish.together, in_use=wish.in_use)
                batch.wishes.pop(0)
                for array in made:
                    self._note(batch, array, place)
                waiting += made
            for array in waiting:
                if all(part.unwanted for part in batch.parts if part.member.array is array):
                    self._cancel_lost(batch, array, place)
                    continue
                array.resources = place.resources
                job = arrays.submit(array)
                self._ledger.change_job(array.key, "open", job)
                size = len(array.members)
                logger.info("job %s: %s, %d part%s", job, array.members[0].name, size, "" if size == 1 else "s")
        except QueueError as error:
            place.failed(error)
            return False
        place.answered()
        return True

    def _cancel_lost(self, batch: Batch, array: Array, place: Place) -> None:
        """Nobody wants ``array`` any more, whose submission got no answer: it is looked for, and not submitted."""
        queue = place.arrays().queue
        array.job = queue.find(array.key)
        if array.job is not None:
            self._ledger.change_job(array.key, "cancelling", array.job)
            queue.cancel([array.job])
            return
        for part in batch.parts:
            part.ended = part.ended or part.member.array is array

    def _note(self, batch: Batch, array: Array, place: Place) -> None:
        size = len(array.members)
        self._ledger.note_job(
            batch.plan.checkpoint, array.key, stage=batch.stage, runner=place.key, manifest=array.manifest, size=size
        )

    def ended(self, array: Array) -> None:
        self._ledger.change_job(array.key, "ended")

    def stop(self, part: Part, place: Place) -> None:
        """Cancel one part; its array stays open."""
        try:
            place.arrays().queue.cancel([part.member.element])
        except QueueError as error:
            place.failed(error)

    def cancel(self, parts: Sequence[Part], place: Place) -> None:
        """Ask for the end of ``parts``, which nobody wants any more."""
        if not parts:
            return
        arrays = {part.member.array for part in parts if part.member.array is not None}
        for part in parts:
            part.unwanted = True
            if part.member.array is None or part.member.array.job is None:
                part.ended = part.member.array is None or not part.member.array.asked
        for array in arrays:
            self._ledger.change_job(array.key, "cancelling")
        elements = [part.member.element for part in parts if part.member.array and part.member.array.job]
        try:
            place.arrays().queue.cancel(elements)
        except QueueError as error:
            place.failed(error)

    def cancel_others(self, rows: Sequence[JobRow], wanted: Collection[str]) -> None:
        """Cancel, as soon as the queue can be asked, what was begun to be cancelled or is for no ``wanted`` checkpoint."""
        self.to_cancel += [row for row in rows if row.state == "cancelling" or row.fingerprint not in wanted]

    def cancel_some(self) -> None:
        for row in list(self.to_cancel):
            place = self.place(row.runner)
            if not place.may_be_asked():
                continue
            try:
                cluster = place.arrays().queue
                if (job := row.job or cluster.find(row.key)) is not None:
                    logger.info("cancelling job %s of a former daemon", job)
                    cluster.cancel([job])
            except QueueError as error:
                place.failed(error)
                continue
            except ValueError as error:  # a section of former days that is refused now
                logger.warning("job %s of a former daemon may still run: %s", row.job or row.key, error)
            self.to_cancel.remove(row)
            self._ledger.change_job(row.key, "ended")
