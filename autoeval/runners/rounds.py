"""One checkpoint on a cluster: what is left to do of it, and what follows when a job of it has died."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from autoeval.runners.parts import Batch, Part
from autoeval.tasks.plan import EvaluationPlan


@dataclass(eq=False)
class Round:
    """From its order to its last event. ``todo``: versions of the tasks without a result."""

    plan: EvaluationPlan
    todo: dict[str, str]
    ended: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)  # by the step at which a job was
    conversion: Batch | None = None
    evaluation: Batch | None = None
    loaded: bool = False

    def left(self) -> list[str]:
        return [task for task in self.todo if task not in self.ended]

    def has(self, batch: Batch) -> bool:
        return batch is self.conversion or batch is self.evaluation


@dataclass(frozen=True)
class Aftermath:
    """``fail``: tasks that have failed for good. ``retry``: those for a new job, asked ``together`` or one by one.
    ``give_up``: nothing of the checkpoint can be evaluated."""

    fail: tuple[str, ...] = ()
    retry: tuple[str, ...] = ()
    together: bool = True
    give_up: bool = False


def step_of(part: Part) -> str:
    """What a job was at, as far as it has told."""
    return part.progress.step if part.progress else "start"


def after_death(current: Round, batch: Batch, part: Part, *, again: bool, attempts: int) -> Aftermath:
    """What follows when ``part`` of the evaluation has died, which is counted already. ``again``: another try may help.

    The task at which jobs die is to blame, and fails alone after ``attempts``; of several that were asked together none is,
    so each is tried by itself. What was not begun goes on elsewhere: in a new job, or where another one is at work. Claims
    of the dead are given back.
    """
    claims = part.claims
    mine = [task for task in current.left() if task in part.order.mine or claims.holder(task) == claims.owner]
    mine = [task for task in mine if claims.may_be_taken(task)]
    claims.release(mine)
    running = [task for task in (part.progress.running if part.progress else []) if task in current.left()]
    last = not again or current.deaths[step_of(part)] >= attempts
    others = any(not other.doomed for other in batch.alive())
    if last and not running and not others and again:
        return Aftermath(give_up=True)
    fail = tuple(running) if not again or (last and len(running) == 1) else ()
    rest = tuple(task for task in mine if task not in fail)
    if not again:
        return Aftermath(fail if others else (*fail, *rest))
    return Aftermath(fail, () if last and not running else rest, together=len(running) <= 1)


def essence(plan: EvaluationPlan) -> EvaluationPlan:
    """What must be the same for a job's results to be what is wanted."""
    return replace(plan, skip=(), together=True, logs="")


def load_seconds_key(model: str) -> str:
    """Under which the ledger remembers what loading a model took."""
    return f"load_seconds/{model}"
