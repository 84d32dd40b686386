"""The validation losses that a Megatron-LM log tells, for the check of a conversion."""

from __future__ import annotations

import math
from pathlib import Path

from autoeval.diagnosis.formats.megatron import validations
from autoeval.diagnosis.stream import Position, read_new


def validation_loss_at(log: Path, iteration: int) -> float | None:
    """The run's validation loss (nats a token) at ``iteration`` in the file ``log``, ``None`` when it does not say.

    Of an iteration that was validated twice the last one counts; losses that are not finite don't. Raises ``OSError``
    when the log cannot be read. A byte that is no UTF-8 is no reason not to read the rest.
    """
    found = None
    for text in read_new(log, Position(), to_the_end=True):
        for at, name, loss in validations(text):
            if at == iteration and not name and math.isfinite(loss):
                found = loss
    return found
