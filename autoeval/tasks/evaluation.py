"""One checkpoint after the other through the loaded model, keeping what does not depend on the checkpoint.

A task that fails, fails alone. Results are written task by task, each when it is there: a kill loses what is under way.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints import CheckpointChanged
from autoeval.tasks.claims import Claims
from autoeval.tasks.conversion import Ahead, Converted, Preparation, refuse_other_save, source_unchanged
from autoeval.tasks.loaded import LoadedModel
from autoeval.tasks.metering import Meter
from autoeval.tasks.order import Order
from autoeval.tasks.plan import EvaluationPlan, TaskPlan
from autoeval.tasks.sharing import SharedTask
from autoeval.tasks.work import Outcome, Work, existing_result, load_tasks, record, run_helm, set_aside_other_saves

if TYPE_CHECKING:
    from autoeval.tasks.together import Question

logger = logging.getLogger("autoeval.worker")


class Evaluator:
    """``emit`` tells the daemon what happens. Used by one thread, but for ``convert_ahead``."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        self._loaded = LoadedModel()
        self._ahead = Ahead()
        self._questions: Any = None  # made when a model library is loaded
        self._tasks_of: dict[TaskPlan, list[Work]] = {}
        self._in_use: Path | None = None

    def convert_ahead(self, plan: EvaluationPlan) -> None:
        """Begin to convert the checkpoint that will probably be next."""
        self._ahead.begin(plan, self._in_use)

    def evaluate(self, plan: EvaluationPlan) -> None:
        """Convert, load and score one checkpoint. A failed conversion raises.

        Raises ``CheckpointChanged`` when the files are not, or no longer, those of the plan: then nothing was recorded
        that is not of this very save.
        """
        set_aside_other_saves(plan)
        self._in_use = plan.converted
        missing = [
            name
            for name, version in plan.expected
            if name not in plan.skip and not existing_result(plan, name, version)
        ]
        # Before the tasks' data are read, which can take a while.
        preparation = self._prepare(plan) if missing else None
        try:
            waiting = self._waiting(plan)
            if waiting:
                preparation = preparation or self._prepare(plan)
                with log_file(plan.log_path("convert")):
                    model = preparation.model()
                self._emit("loaded")
                _Round(plan, model, preparation, self._emit).run(self._grouped(plan, waiting, model))
            if preparation is not None:
                preparation.finish()
        finally:
            if preparation is not None:
                preparation.end()

    def evaluate_part(self, order: Order, claims: Claims) -> None:
        """Score a checkpoint that is converted already: first what is the order's own, then what nobody else has begun.

        Raises ``OSError`` when the converted model is not there, ``CheckpointChanged`` as ``evaluate`` does.
        """
        plan = order.plan
        cuts = {cut.task: cut for cut in order.cuts}
        waiting = {task.name: task for task in self._waiting(plan)}
        whole = {name: task for name, task in waiting.items() if name not in cuts}
        shared = [SharedTask(plan, task, cuts[name]) for name, task in waiting.items() if name in cuts]
        share_of = {name: one for one in shared for name in one.cut.names}
        steps = [*whole, *(name for one in shared for name in one.left() or [one.work.name])]
        if not any(map(claims.may_be_taken, steps)):
            return
        started = time.perf_counter()
        with log_file(plan.log_path("convert")):
            preparation = Converted(plan, self._loaded)
            model = preparation.model()
        self._emit("loaded", seconds=round(time.perf_counter() - started, 3))
        doing = _Round(plan, model, preparation, self._emit, claims.take)
        own = [whole[name] for name in order.mine if name in whole]
        for name in order.mine:
            if name in share_of:
                doing.share(share_of[name], name)
            elif own:  # what is asked together, where the first of it is
                doing.run(self._grouped(plan, own, model))
                own = []
        for name in order.turns or reversed(steps):
            if name in share_of:
                doing.share(share_of[name], name)
            elif name in whole and name not in order.mine and self._is_free(plan, whole[name], claims):
                doing.run(self._grouped(plan, [whole[name]], model))
        for one in shared:
            doing.join(one)

    def _is_free(self, plan: EvaluationPlan, task: Work, claims: Claims) -> bool:
        return claims.may_be_taken(task.name) and existing_result(plan, task.name, task.version) is None

    def _prepare(self, plan: EvaluationPlan) -> Preparation:
        with log_file(plan.log_path("convert")):
            return Preparation(plan, self._loaded, self._ahead, self._emit)

    def _waiting(self, plan: EvaluationPlan) -> list[Work]:
        """The tasks without a result; those that have one are told of."""
        if plan.tasks not in self._tasks_of:
            self._tasks_of[plan.tasks] = load_tasks(plan.tasks)
        tasks = self._tasks_of[plan.tasks]
        self._emit("tasks", tasks=[[task.name, task.version] for task in tasks])
        waiting = []
        for task in tasks:
            if existing_result(plan, task.name, task.version) is not None:
                path = str(plan.result_path(task.name))
                self._emit("task_done", task=task.name, version=task.version, result=path)
            elif task.name not in plan.skip:
                waiting.append(task)
        return waiting

    def _grouped(self, plan: EvaluationPlan, tasks: Sequence[Work], model: Any) -> Iterator[list[Any]]:
        """``tasks`` as they are run: HELM's alone, OpenICL's as ``together.Question``s; a task that cannot be asked as
        (task, error)."""
        from autoeval.tasks.together import Questions, grouped

        self._questions = self._questions or Questions()
        asked: list[Question] = []
        others: list[list[Any]] = []
        for task in tasks:
            if task.source == "helm":
                others.append([task])
                continue
            try:
                asked.append(self._questions.of(task, model))
            except Exception as error:
                others.append([(task, error)])
        yield from grouped(asked, model.batch_tokens) if plan.together else ([one] for one in asked)
        yield from others


class _Round:
    """The tasks of one checkpoint; ``take`` says, when its turn has come, whether a task is for this process."""

    def __init__(
        self,
        plan: EvaluationPlan,
        model: Any,
        preparation: Preparation | Converted,
        emit: Callable[..., None],
        take: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._plan, self._model, self._preparation, self._emit = plan, model, preparation, emit
        self._take = take
        self._of_no_use: set[str] = set()  # tasks of which a share has failed

    def run(self, groups: Iterator[list[Any]]) -> None:
        for whole in groups:
            group = [one for one in whole if self._take(_name_of(one))]
            if not group:
                continue
            if isinstance(group[0], Work):
                self._preparation.finish()  # HELM records its runs itself
                self._alone(group[0], partial(run_helm, self._plan, group[0], self._model))
            elif isinstance(group[0], tuple):
                task, error = group[0]
                self._started(task)
                self._failed(task, error)
            elif len(group) == 1:
                self._alone(group[0].work, partial(group[0].outcome, self._model), group[0].seconds)
            else:
                self._together(group)

    def share(self, shared: SharedTask, name: str) -> None:
        """One share of a task, unless it is there or another process has it; then the task, if it was the last."""
        task = shared.work
        if task.name in self._of_no_use or not shared.is_left(name) or not self._take(name):
            return
        self._share_started(task, name)
        with log_file(self._plan.log_path(task.name)):
            try:
                content = shared.evaluate(name, self._model)
                self._look_at_source()
                shared.keep(name, content)
            except CheckpointChanged:
                raise
            except Exception as error:
                self._of_no_use.add(task.name)
                for other in [*shared.cut.names, task.name]:  # nobody need begin them any more
                    self._take(other)
                self._failed(task, error)
                return
        self._emit("share_done", task=task.name, share=name)
        self.join(shared)

    def join(self, shared: SharedTask) -> None:
        """The task's result, if all shares are there and no other process makes it."""
        task = shared.work
        if not shared.is_joinable() or not self._take(task.name):
            return
        self._share_started(task, f"{task.name} (all shares)")
        with log_file(self._plan.log_path(task.name)):
            try:
                outcome, cost = shared.joined(self._model)
            except Exception as error:
                self._failed(task, error)
                return
            self._record(task, outcome, cost)

    def _alone(self, task: Work, find: Callable[[], Outcome], seconds: float = 0.0) -> None:
        """``seconds``: what it has taken already."""
        self._started(task)
        with log_file(self._plan.log_path(task.name)):
            meter = Meter(self._model)
            try:
                outcome = find()
            except Exception as error:
                self._failed(task, error)
                return
            self._record(task, outcome, meter.read().cost(own_seconds=seconds))

    def _together(self, group: Sequence[Question]) -> None:
        from autoeval.tasks.together import ask_together, shares

        names = ", ".join(one.work.name for one in group)
        with contextlib.ExitStack() as logs:
            for one in group:
                self._started(one.work)
                logs.enter_context(log_file(self._plan.log_path(one.work.name)))
            logger.info("asked together: %s", names)
            meter = Meter(self._model)
            try:
                answers = ask_together(group, self._model)
            except Exception:
                logger.exception("asked together %s fail; each is tried by itself", names)
                answers = None
            measured = meter.read()
        if answers is None:
            for one in group:
                self._alone(one.work, partial(one.outcome, self._model), one.seconds)
            return
        for one, own, share in zip(group, answers, shares(group), strict=True):
            began = time.perf_counter()
            with log_file(self._plan.log_path(one.work.name)):
                try:
                    outcome = one.outcome(self._model, own)
                except Exception as error:
                    self._failed(one.work, error)
                    continue
                self._record(one.work, outcome, measured.cost(share, one.seconds + time.perf_counter() - began))

    def _started(self, task: Work) -> None:
        self._emit("task_started", task=task.name, version=task.version, log=str(self._plan.log_path(task.name)))

    def _share_started(self, task: Work, share: str) -> None:
        log = str(self._plan.log_path(task.name))
        self._emit("share_started", task=task.name, version=task.version, share=share, log=log)

    def _failed(self, task: Work, error: Exception) -> None:
        logger.error("task %s failed", task.name, exc_info=error)
        log = str(self._plan.log_path(task.name))
        self._emit("task_failed", task=task.name, version=task.version, error=describe(error), log=log)

    def _record(self, task: Work, outcome: Outcome, cost: dict[str, float]) -> None:
        """Predictions and result on disk, or one ``task_failed`` event with the error."""
        self._preparation.finish()
        try:
            self._look_at_source()
            record(self._plan, task, outcome, cost)
        except CheckpointChanged:
            raise
        except Exception as error:
            self._failed(task, error)
            return
        path = str(self._plan.result_path(task.name))
        self._emit("task_done", task=task.name, version=task.version, result=path)

    def _look_at_source(self) -> None:
        """Before anything is kept. Raises ``CheckpointChanged``."""
        if self._plan.format == "huggingface":  # its weights are read where they lie, perhaps as late as now
            refuse_other_save(self._plan)


def _name_of(one: Any) -> str:
    """Of what ``Evaluator._grouped`` puts into groups."""
    work: Work = one if isinstance(one, Work) else one[0] if isinstance(one, tuple) else one.work
    return work.name


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send this process's log records to ``path`` too, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def failure_event(plan: EvaluationPlan, error: Exception) -> dict[str, Any]:
    """What is told of a checkpoint that cannot be evaluated. ``again``: another try, elsewhere perhaps, may help."""
    from autoeval.convert import OutputError

    # Whatever went wrong, it is no news about this checkpoint when its files are no longer the ones it had.
    kind = "checkpoint_failed" if source_unchanged(plan) else "checkpoint_missed"
    told = describe(error)
    passing = isinstance(error, OSError | MemoryError | OutputError)
    return {
        "event": kind,
        # The pin that was read will be gone by the time somebody reads this.
        "error": told.replace(plan.source, plan.checkpoint.path),
        "log": str(plan.log_path("convert")),
        "again": passing or "out of memory" in told.lower(),
    }


def describe(error: BaseException) -> str:
    """An exception in one line; the project's own say all there is to know without the name of their class."""
    if type(error).__module__.partition(".")[0] in ("autoeval", "recorder") and str(error):
        return " ".join(str(error).split("\n"))
    return "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
