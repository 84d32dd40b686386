"""What is asked of a model for a task, apart from the asking: so that several tasks can be asked about together, and the
same questions put to the next checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autoeval.models.requests import LoglikelihoodRequest

Record = dict[str, Any]  # what the predictions file keeps of an item


@dataclass(frozen=True)
class Asked:
    """``requests`` are of one kind (``LoglikelihoodRequest``, ``GenerationRequest`` or ``ChatRequest``). ``then`` makes
    the records of their answers, or asks the next round of a dialogue. It keeps nothing: answers of another model
    may follow. Raises ``ValueError`` for a log-probability that is no number.
    """

    requests: Sequence[Any]
    then: Callable[[Sequence[Any]], list[Record] | Asked]


def answer(model: Any, requests: Sequence[Any]) -> Sequence[Any]:
    """The model's answers, in order. One that has ``generate_messages`` is asked with messages."""
    if requests and isinstance(requests[0], LoglikelihoodRequest):
        return list(model.loglikelihoods(requests))
    return list(model.generate_messages(requests) if hasattr(model, "generate_messages") else model.generate(requests))


def records_of(asked: Asked, model: Any) -> list[Record]:
    """Ask ``model`` until all is answered."""
    found: list[Record] | Asked = asked
    while isinstance(found, Asked):
        found = found.then(answer(model, found.requests))
    return found
