"""The process that computes: takes plans on its standard input, answers with events on its standard output.

    python -m autoeval.tasks.worker             serve: one plan file's path a line in, one JSON event a line out
    python -m autoeval.tasks.worker --list      task plan (JSON) on standard input; tasks with versions out

The daemon imports no torch; this process does, once, and is kept for the next checkpoint; it is started while
a save is still under way, so that it is ready when that is complete. It ends as soon as its
standard input closes, also in the middle of a task, so that it never outlives the daemon. All it leaves behind are
files written whole, so it may be killed at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from autoeval.checkpoints import CheckpointChanged
from autoeval.tasks.conversion import prepare_model, refuse_other_save, source_unchanged
from autoeval.tasks.plan import EvaluationPlan, TaskPlan, load_plan, task_plan_from_json
from autoeval.tasks.work import Work, evaluate_task, existing_result, load_tasks, set_aside_other_saves
from recorder.files import write_json
from recorder.results import write_result

logger = logging.getLogger("autoeval.worker")


class Events:
    """Writes events to the real standard output, which nothing else in this process can reach."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __call__(self, event: str, **details: Any) -> None:
        self._stream.write(json.dumps({"event": event, **details}) + "\n")
        self._stream.flush()


def take_standard_output() -> TextIO:
    """Keep standard output for the events; what libraries print goes to standard error from here on."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def serve(emit: Events) -> None:
    """Evaluate plans until the input closes."""
    plans: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_input, args=(plans,), daemon=True).start()
    tasks_of: dict[TaskPlan, list[Work]] = {}
    warm_up()
    emit("ready", pid=os.getpid())
    while True:
        plan = load_plan(Path(plans.get()))
        try:
            evaluate(plan, emit, tasks_of)
        except Exception as error:
            logger.exception("checkpoint %s failed", plan.checkpoint.iteration)
            # Whatever went wrong, it is no news about this checkpoint when its files are no longer the ones it had.
            kind = "checkpoint_failed" if source_unchanged(plan) else "checkpoint_missed"
            # The pin that was read will be gone by the time somebody reads this.
            told = describe(error).replace(plan.source, plan.checkpoint.path)
            emit(kind, error=told, log=str(plan.log_path("convert")))
        else:
            emit("checkpoint_done")


def warm_up() -> None:
    """Import what every checkpoint needs, while its save may still be under way: a conversion can then begin at once."""
    try:
        import torch  # noqa: F401 - imported for its time, as the last line
        import transformers

        import autoeval.convert.conversion
        import autoeval.models.hf  # noqa: F401 - likewise

        for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"):
            getattr(transformers, name)  # the package is lazy: this imports what is behind the name
    except Exception:
        logger.exception("an import failed; it will fail each checkpoint too, which says so in its own log")


def _read_input(plans: queue.Queue[str]) -> None:
    for line in sys.stdin:
        if line.strip():
            plans.put(line.strip())
    # The daemon is gone or wants us gone; what is on disk is whole. Nothing that we started may outlive us either.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def evaluate(plan: EvaluationPlan, emit: Events, tasks_of: dict[TaskPlan, list[Work]]) -> None:
    """Convert, load and score one checkpoint. A task that fails, fails alone; a failed conversion raises.

    Raises ``CheckpointChanged`` when the files are not, or no longer, those of the plan: then nothing was recorded
    that is not of this very save.
    """
    set_aside_other_saves(plan)
    prepared = False
    if any(name not in plan.skip and existing_result(plan, name, version) is None for name, version in plan.expected):
        prepare(plan, emit)  # before the tasks' data are read, which can take a while
        prepared = True
    if plan.tasks not in tasks_of:
        tasks_of[plan.tasks] = load_tasks(plan.tasks)
    tasks = tasks_of[plan.tasks]
    emit("tasks", tasks=[[task.name, task.version] for task in tasks])
    waiting = []
    for task in tasks:
        if existing_result(plan, task.name, task.version) is not None:
            emit("task_done", task=task.name, version=task.version, result=str(plan.result_path(task.name)))
        elif task.name not in plan.skip:
            waiting.append(task)
    if not waiting:
        return
    if not prepared:
        prepare(plan, emit)
    with log_file(plan.log_path("convert")):
        model = load_model(plan)
    try:
        for task in waiting:
            run_task(plan, task, model, emit)
    finally:
        model.unload()


def prepare(plan: EvaluationPlan, emit: Events) -> None:
    with log_file(plan.log_path("convert")):
        prepare_model(plan, emit)


def load_model(plan: EvaluationPlan) -> Any:
    from autoeval.models.hf import HuggingFaceModel

    options = plan.model
    return HuggingFaceModel(
        plan.converted,
        dtype=options.dtype,
        device=options.device,
        max_seq_len=options.max_seq_len,
        batch_tokens=options.batch_tokens,
    )


def run_task(plan: EvaluationPlan, task: Work, model: Any, emit: Events) -> None:
    """One task: predictions and result on disk, or one ``task_failed`` event with the last error."""
    log = plan.log_path(task.name)
    emit("task_started", task=task.name, version=task.version, log=str(log))
    with log_file(log):
        try:
            predictions, result = evaluate_task(plan, task, model)
            if plan.format == "huggingface":  # its weights are read where they lie, perhaps as late as now
                refuse_other_save(plan)
            if predictions is not None:
                write_json(plan.predictions_path(task.name), predictions)
            write_result(plan.result_path(task.name), result)
        except CheckpointChanged:
            raise
        except Exception as error:
            logger.exception("task %s failed", task.name)
            emit("task_failed", task=task.name, version=task.version, error=describe(error), log=str(log))
            return
    emit("task_done", task=task.name, version=task.version, result=str(plan.result_path(task.name)))


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


def describe(error: BaseException) -> str:
    """An exception in one line; the project's own say all there is to know without the name of their class."""
    if type(error).__module__.partition(".")[0] in ("autoeval", "recorder") and str(error):
        return " ".join(str(error).split("\n"))
    return "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")


def list_tasks(emit: Events) -> int:
    """Answer the task plan on standard input with its tasks; a plan that cannot be loaded gives an ``error``."""
    try:
        tasks = load_tasks(task_plan_from_json(json.load(sys.stdin)))
    except Exception as error:
        logger.debug("the tasks cannot be loaded", exc_info=True)
        emit("error", error=describe(error))
        return 1
    emit("tasks", tasks=[[task.name, task.version] for task in tasks])
    return 0


def main() -> int:
    emit = Events(take_standard_output())
    logging.basicConfig(
        level=os.environ.get("AUTOEVAL_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for torch's buffers: conversions read faster
    # The evaluation path is offline by construction; without these, libraries try the hub first and wait.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    if "--list" in sys.argv[1:]:
        return list_tasks(emit)
    serve(emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
