"""One job of a cluster: a part of a checkpoint's evaluation, or its conversion.

    python -m autoeval.tasks.worker --order FILE

It does what the order says, tells of it in the order's event file, and ends with 0 when all went well. As the worker that
the daemon keeps on its own machine it leaves files written whole, so it may be killed at any time, and it ends when its
standard input closes.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from autoeval.tasks.claims import Claims
from autoeval.tasks.conversion import convert_for_others
from autoeval.tasks.evaluation import Evaluator, failure_event
from autoeval.tasks.events import EventFile, beating
from autoeval.tasks.order import Order, load_order

logger = logging.getLogger("autoeval.worker")

HEARTBEAT_SECONDS = 5.0  # each is a write to a file system that many share


def run_order(path: Path) -> int:
    """Do what the order file says; the exit code."""
    order = load_order(path)
    emit = EventFile(Path(order.events))
    emit("ready", pid=os.getpid(), host=socket.gethostname())
    with beating(emit, HEARTBEAT_SECONDS):
        try:
            _obey(order, emit)
        except Exception as error:
            logger.exception("checkpoint %s: %s failed", order.plan.checkpoint.iteration, order.stage)
            emit(**failure_event(order.plan, error))
            return 1
    emit("checkpoint_done")
    return 0


def _obey(order: Order, emit: EventFile) -> None:
    if order.stage == "convert":
        convert_for_others(order.plan, emit, None if order.in_use is None else Path(order.in_use))
    else:
        Evaluator(emit).evaluate_part(order, Claims(Path(order.claims), order.owner))
