"""Lines of Megatron-LM's training log.

``evaluate_and_print_results`` writes, on the last rank,
``validation loss at iteration 500 | lm loss value: 2.345678E+00 | lm loss PPL: 1.044064E+01 |`` (and, at the end of the
run, ``validation loss at iteration 500 on validation set | …``); launchers may put a time or a rank before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

_VALIDATION = re.compile(
    r"validation loss at iteration (?P<iteration>\d+)(?: on (?P<set>\w+) set)?\s*\|"
    r".*?lm loss value: (?P<loss>[-+0-9.eE]+|nan|inf)\s*\|?"
)


def validation_losses(lines: Iterable[str]) -> dict[int, float]:
    """The language-model loss (nats a token) on the validation set, by iteration.

    Of an iteration that was trained twice the last one counts. Losses that are not finite are left out.
    """
    found: dict[int, float] = {}
    for line in lines:
        match = _VALIDATION.search(line)
        if match is None or match["set"] == "test":
            continue
        try:
            loss = float(match["loss"])
        except ValueError:  # the line was cut short
            continue
        if math.isfinite(loss):
            found[int(match["iteration"])] = loss
    return found


def validation_loss_at(log: Path, iteration: int) -> float | None:
    """The run's validation loss at ``iteration`` in the file ``log``, ``None`` when it does not say.

    Raises ``OSError`` when the log cannot be read. A byte that is no UTF-8 is no reason not to read the rest.
    """
    with log.open(encoding="utf-8", errors="replace") as lines:
        return validation_losses(lines).get(iteration)
