"""One checkpoint on a cluster: what is left to do of it, and what follows when a job of it has died."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autoeval.runners.parts import Batch, Part
from autoeval.runners.progress import CONVERT
from autoeval.tasks.plan import EvaluationPlan
from autoeval.tasks.shares import Dealt, ShareFiles

logger = logging.getLogger(__name__)

START = "start"  # the step of a job of which nothing was heard


@dataclass(eq=False)
class Round:
    """From its order to its last event. ``todo``: versions of the tasks without a result."""

    plan: EvaluationPlan
    todo: dict[str, str]
    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)  # by the step at which a job was
    conversion: Batch | None = None
    evaluation: Batch | None = None
    loaded: bool = False

    def left(self) -> list[str]:
        return [task for task in self.todo if task not in self.ended]

    def begins(self, event: Mapping[str, Any]) -> bool:
        """Whether what began in a job is a task that has, for whom shares are of no interest."""
        task = event["task"]
        first = "share" not in event or task not in self.begun
        self.begun.add(task)
        return first and task in self.left()

    def log_dealt(self, dealt: Dealt) -> None:
        ref = self.plan.checkpoint
        tasks, jobs = len(self.todo), len(dealt.parts)
        logger.info("%s iteration %d: %d tasks in %d jobs", ref.model, ref.iteration, tasks, jobs)
        for cut in dealt.cuts:
            logger.info("%s iteration %d: %s in %d shares", ref.model, ref.iteration, cut.task, len(cut.weights))

    def log_share(self, event: Mapping[str, Any]) -> None:
        """One is done: who waits for a long task sees that it goes on."""
        ref = self.plan.checkpoint
        logger.info("%s iteration %d: %s is done", ref.model, ref.iteration, event["share"])

    def has(self, batch: Batch) -> bool:
        return batch is self.conversion or batch is self.evaluation

    def steps(self, tasks: Iterable[str] | None = None) -> dict[str, str]:
        """What can be claimed of ``tasks`` (all that are left) and is not done: themselves, which for one that is cut means
        joining its shares, and these shares. With the task that each belongs to."""
        cuts = {cut.task: cut for cut in self.evaluation.cuts} if self.evaluation else {}
        found: dict[str, str] = {}
        for task in self.left() if tasks is None else tasks:
            if task in cuts:
                shares = ShareFiles(self.plan, task, self.todo[task]).left(cuts[task])
                found |= dict.fromkeys(shares, task)
            found[task] = task
        return found


@dataclass(frozen=True)
class Aftermath:
    """``fail``: tasks that have failed for good. ``retry``: steps for a new job, asked ``together`` or one by one.
    ``give_up``: nothing of the checkpoint can be evaluated."""

    fail: tuple[str, ...] = ()
    retry: tuple[str, ...] = ()
    together: bool = True
    give_up: bool = False


def step_of(part: Part) -> str:
    """What a job was at, as far as it has told."""
    return part.progress.step if part.progress else START


def count_death(current: Round, part: Part, attempts: int, slots: int) -> tuple[int, bool]:
    """How often jobs have died where ``part`` has now, and whether that is too often.

    A share may be begun as often as a task; all shares of a task together as often as one task in each of the ``slots``: a
    task of which every share kills its job is not tried with all of them. So may the loading of the model: a node that is
    lost takes all the jobs that load there with it, and that is one failure and not as many.
    """
    step = step_of(part)
    current.deaths[step] += 1
    loads = part.order.stage == "evaluate" and step in (START, CONVERT)
    worn_out = current.deaths[step] >= attempts * (slots if loads else 1)
    if part.progress is not None and part.progress.share:
        whole = f"shares of {part.progress.running[0]}"
        current.deaths[whole] += 1
        worn_out = worn_out or current.deaths[whole] >= attempts * slots
    return current.deaths[step], worn_out


def after_death(current: Round, batch: Batch, part: Part, *, again: bool, worn_out: bool) -> Aftermath:
    """What follows when ``part`` of the evaluation has died. ``again``: another try may help; ``worn_out``: not any more.

    The task at which jobs die is to blame, and fails alone, with all its shares; of several that were asked together none
    is, so each is tried by itself. What was not begun goes on elsewhere: in a new job, or where another one is at work.
    Claims of the dead are given back.
    """
    claims = part.claims
    steps = current.steps()
    mine = [step for step in steps if step in part.order.mine or claims.holder(step) == claims.owner]
    mine = [step for step in mine if claims.may_be_taken(step)]
    was_at = part.progress.running if part.progress else []
    running = [task for task in was_at if task in current.left()]
    over = bool(was_at) and not running  # it was at a share of what has failed meanwhile: that is all that it tells
    last = not again or (worn_out and not over)
    others = any(not other.doomed for other in batch.alive())
    if last and not running and not others and again:
        claims.release(mine)
        return Aftermath(give_up=True)
    fail = tuple(running) if not again or (last and len(running) == 1) else ()
    if not again and not others:
        fail = (*fail, *(task for task in current.left() if task not in fail))
    rest = tuple(step for step in mine if steps[step] not in fail)
    claims.release(rest)
    for step in current.steps(fail):
        claims.take(step)  # for the dead: nobody need begin it any more
    if not again:
        return Aftermath(fail)
    return Aftermath(fail, () if last and not running else rest, together=len(running) <= 1)


def essence(plan: EvaluationPlan) -> EvaluationPlan:
    """What must be the same for a job's results to be what is wanted."""
    return replace(plan, skip=(), together=True, logs="")


def load_seconds_key(model: str) -> str:
    """Under which the ledger remembers what loading a model took."""
    return f"load_seconds/{model}"
