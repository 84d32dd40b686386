"""The process that computes: takes plans on its standard input, answers with events on its standard output.

    python -m autoeval.tasks.worker             serve: one JSON order a line in, one JSON event a line out
    python -m autoeval.tasks.worker --list      task plan (JSON) on standard input; tasks with versions out
    python -m autoeval.tasks.worker --order FILE   one job of a cluster (autoeval.tasks.job)

Orders are ``{"evaluate": PLAN_FILE}``, ``{"convert": PLAN}`` (ahead of its turn, while another one is evaluated) and
``{"import": "helm"}`` (HELM's tasks are to come).
The daemon imports no torch; this process does, once, and is kept for the next checkpoint; it is started while
a save is still under way, so that it is ready when that is complete. It ends as soon as its
standard input closes, also in the middle of a task, so that it never outlives the daemon. All it leaves behind are
files written whole, so it may be killed at any time.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from autoeval.helm import imports as helm_imports
from autoeval.importing import without_collection
from autoeval.log_files import keep_own_log
from autoeval.offline.environment import keep_off_the_hub
from autoeval.tasks.evaluation import Evaluator, describe, failure_event
from autoeval.tasks.events import Events, beating
from autoeval.tasks.plan import EvaluationPlan, load_plan, plan_from_json, task_plan_from_json
from autoeval.tasks.work import load_tasks
from recorder.untrusted import PrintableRecord

logger = logging.getLogger("autoeval.worker")


def take_standard_output() -> TextIO:
    """Keep standard output for the events; what libraries print goes to standard error from here on."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def serve(emit: Events) -> None:
    """Obey orders until the input closes."""
    plans: queue.Queue[EvaluationPlan] = queue.Queue()
    evaluator = Evaluator(emit)
    warm = threading.Event()
    threading.Thread(target=_read_input, args=(plans, evaluator, warm), daemon=True).start()
    warm_up()
    warm.set()
    emit("ready", pid=os.getpid())
    while True:
        plan = plans.get()
        try:
            with beating(emit):
                evaluator.evaluate(plan)
        except Exception as error:
            logger.exception("checkpoint %s failed", plan.checkpoint.iteration)
            emit(**failure_event(plan, error))
        else:
            emit("checkpoint_done")


def warm_up() -> None:
    """Import what every checkpoint needs, while its save may still be under way: a conversion can then begin at once."""
    try:
        with without_collection():
            import torch  # noqa: F401 - imported for its time, as the last line
            import transformers

            import autoeval.convert.conversion
            import autoeval.models.hf  # noqa: F401 - likewise

            for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig"):
                getattr(transformers, name)  # the package is lazy: this imports what is behind the name
        gc.freeze()  # modules stay: no later search for garbage, each of a second otherwise, goes through them
    except Exception:
        logger.exception("an import failed; it will fail each checkpoint too, which says so in its own log")


def _read_input(plans: queue.Queue[EvaluationPlan], evaluator: Evaluator, warm: threading.Event) -> None:
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "evaluate" in order:
                plans.put(load_plan(Path(order["evaluate"])))
            elif "import" in order:
                helm_imports.begin(after=warm)
            else:
                evaluator.convert_ahead(plan_from_json(order["convert"]))
    except Exception:
        logger.exception("an order that cannot be obeyed")
    _end_with_all_that_was_started()


def _end_with_all_that_was_started() -> None:
    # The daemon is gone or wants us gone; what is on disk is whole. Nothing that we started may outlive us either.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _end_with_input() -> None:
    while os.read(0, 4096):  # not through sys.stdin: its lock would be held when the interpreter ends
        pass
    _end_with_all_that_was_started()


def list_tasks(emit: Events) -> int:
    """Answer the task plan on standard input with its tasks; a plan that cannot be loaded gives an ``error``."""
    try:
        tasks = load_tasks(task_plan_from_json(json.load(sys.stdin)))
    except Exception as error:
        logger.debug("the tasks cannot be loaded", exc_info=True)
        emit("error", error=describe(error))
        return 1
    emit(
        "tasks",
        tasks=[[task.name, task.version] for task in tasks],
        sizes={task.name: task.size for task in tasks},
        families={task.name: task.family for task in tasks},
        most_shares={task.name: task.most_shares for task in tasks},
    )
    return 0


def main() -> int:
    emit = Events(take_standard_output())
    keep_own_log()
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(
        level=os.environ.get("AUTOEVAL_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for torch's buffers: conversions read faster
    # The evaluation path is offline by construction; without these, libraries try the hub first and wait.
    keep_off_the_hub()
    if "--list" in sys.argv[1:]:
        return list_tasks(emit)
    if "--order" in sys.argv[1:]:
        from autoeval.tasks.job import run_order

        threading.Thread(target=_end_with_input, daemon=True).start()
        return run_order(Path(sys.argv[sys.argv.index("--order") + 1]))
    serve(emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
