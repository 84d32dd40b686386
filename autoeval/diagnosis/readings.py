"""What a log says, as the parsers give it: training rows, validation losses, facts about the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy

# A training row. What a log does not say is NaN; a loss that it gives as NaN is infinite here. ``iteration`` is in the units of the log's axis; ``rate`` is
# throughput, more is faster (samples, tokens or steps a second, the same in one log); ``skipped`` and ``nan`` count
# iterations since the row before; ``tokens`` is how many the run has seen.
COLUMNS = ("iteration", "loss", "grad_norm", "learning_rate", "loss_scale", "rate", "skipped", "nan", "tokens", "epoch")
COLUMN = {name: index for index, name in enumerate(COLUMNS)}
NAN = float("nan")


class Validation(NamedTuple):
    """A validation loss (nats a token in language models). ``name`` is the set's, empty for the one there is."""

    iteration: float
    name: str
    loss: float


@dataclass
class Facts:
    """About the whole run, each ``None`` until the log has said it."""

    total: float | None = None  # where the run will end, in the units of the axis
    parameters: float | None = None
    sequence_length: float | None = None


@dataclass
class Readings:
    """What one piece of a log said, in its order."""

    rows: list[numpy.ndarray] = field(default_factory=list)  # each (rows, columns)
    validations: list[Validation] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def add_columns(self, known: Mapping[str, numpy.ndarray]) -> None:
        """Rows given as columns of shape (rows,), among them ``iteration``; those that are no column are left out."""
        import numpy

        table = numpy.full((len(known["iteration"]), len(COLUMNS)), numpy.nan)
        for name in known.keys() & COLUMN.keys():
            table[:, COLUMN[name]] = known[name]
        if "loss" in known:
            table[:, COLUMN["loss"]] = numpy.where(numpy.isfinite(known["loss"]), known["loss"], numpy.inf)
        self.rows.append(table)

    def add_rows(self, rows: Sequence[Sequence[float]]) -> None:
        """``rows`` with a number for each of ``COLUMNS``."""
        if rows:
            import numpy

            self.rows.append(numpy.array(rows, dtype=numpy.float64))


def row(**values: float) -> list[float]:
    """A training row of the columns that are given."""
    return [values.get(name, NAN) for name in COLUMNS]


def number(text: Any) -> float:
    """``text`` as a number (``1,234.5`` too), NaN when it is none."""
    if isinstance(text, bytes):
        text = text.replace(b",", b"")
    elif isinstance(text, str):
        text = text.replace(",", "")
    try:
        return float(text)
    except (TypeError, ValueError):
        return NAN


def printed_loss(text: Any) -> float:
    """``text`` as the loss of a row: infinite when it is no finite number."""
    value = number(text)
    return value if math.isfinite(value) else math.inf
