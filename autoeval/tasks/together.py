"""Which OpenICL tasks are asked about together: what they ask is planned once and kept for the next checkpoints.

All requests of a call are one token trie to the model. Tasks whose prompts begin alike (one data set ranked in two ways)
go into one call, so that what they share is computed once; so do small tasks, whose passes would be half empty. All
others stay apart: their results are on disk earlier, and a kill in between loses less.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.openicl.asking import Asked, answer, records_of
from autoeval.tasks.icl import ask_icl_task, icl_outcome
from autoeval.tasks.work import Outcome, Work

HEAD = 16  # tokens: prompts that have not even these in common share nothing worth a common walk
WORTH = 0.05  # of the smaller task's tokens: saving less is not worth a later result
FULL_PASSES = 4  # a call of so many passes has at most a fifth of one empty
KEPT_TOKENS = 16_000_000  # of all that is kept, 8 bytes each and their texts


@dataclass
class Question:
    """All that one task asks in its first round (``asked``)."""

    work: Work
    asked: Asked
    seconds: float = 0.0  # that preparing it has taken; nothing where it was kept
    tokens: int = field(init=False)  # as if every request were computed by itself

    def __post_init__(self) -> None:
        self.tokens = sum(map(_length, self.asked.requests))

    def outcome(self, model: Any, answers: Sequence[Any] | None = None) -> Outcome:
        """What the task finds; ``answers`` to its first round, where they are known. Raises ``ValueError``."""
        known = answer(model, self.asked.requests) if answers is None else answers
        found = self.asked.then(known)
        records = records_of(found, model) if isinstance(found, Asked) else found
        icl = icl_outcome(self.work.task, records)
        return Outcome(icl.predictions, icl.scores, icl.items)

    @cached_property
    def keys(self) -> set[bytes]:
        """The distinct inputs."""
        from autoeval.models.trie import key_of

        return {key_of(_input(request)) for request in self.asked.requests}

    @cached_property
    def heads(self) -> Counter[bytes]:
        """How many inputs begin with each beginning."""
        return Counter(key[: 4 * HEAD] for key in self.keys)

    @cached_property
    def unique_tokens(self) -> int:
        return _unique(self.keys) + self._grown

    @cached_property
    def _grown(self) -> int:
        """Tokens that are generated, at most."""
        return sum(getattr(request, "max_new_tokens", 0) for request in self.asked.requests)

    @property
    def kind(self) -> type:
        return type(self.asked.requests[0])


class Questions:
    """What tasks ask the loaded model. It depends on task, tokenizer and window only, so it is kept while they stay."""

    def __init__(self) -> None:
        self._model: Any = None
        self._kept: dict[tuple[str, str], Question] = {}

    def of(self, work: Work, model: Any) -> Question:
        """Raises ``ValueError`` for what cannot be asked this model."""
        if model is not self._model:  # another module: another tokenizer, perhaps, or another window
            self._model, self._kept = model, {}
        key = (work.name, work.version)
        if key in self._kept:
            return self._kept[key]
        started = time.perf_counter()
        question = Question(work, ask_icl_task(work.task, model))
        took = time.perf_counter() - started
        if question.tokens + sum(kept.tokens for kept in self._kept.values()) <= KEPT_TOKENS:
            self._kept[key] = question
        return replace(question, seconds=took)


def grouped(questions: Sequence[Question], batch_tokens: int) -> list[list[Question]]:
    """``questions`` in calls to the model, in the order of each call's first one."""
    groups: list[list[Question]] = []
    for question in questions:
        same = [group for group in groups if group[0].kind is question.kind and _joinable(question)]
        home = next((group for group in same if _saved(group, question) >= WORTH * question.unique_tokens), None)
        if home is None:
            home = next((group for group in same if _small([*group, question], batch_tokens)), None)
        if home is None:
            groups.append([question])
        else:
            home.append(question)
    return groups


def _joinable(question: Question) -> bool:
    return question.kind in (LoglikelihoodRequest, GenerationRequest)


def _small(group: Sequence[Question], batch_tokens: int) -> bool:
    """Whether the passes of ``group`` are so few that the last one, half empty, counts."""
    most = FULL_PASSES * batch_tokens
    return all(one.tokens <= 64 * most for one in group) and sum(one.unique_tokens for one in group) <= most


def _saved(group: Sequence[Question], question: Question) -> int:
    """Tokens that are computed once less when ``question`` joins."""
    alike = sum(count for head, count in question.heads.items() if any(head in one.heads for one in group))
    if alike < WORTH * len(question.keys):
        return 0
    known = set().union(*(one.keys for one in group))
    return _unique(known) + _unique(question.keys) - _unique(known | question.keys)


def ask_together(group: Sequence[Question], model: Any) -> list[list[Any]]:
    """The answers to each of ``group``. Raises as the model does: then it is not known which of them is to blame."""
    results = iter(answer(model, [request for question in group for request in question.asked.requests]))
    return [[next(results) for _ in question.asked.requests] for question in group]


def shares(group: Sequence[Question]) -> list[float]:
    """What part of a common call each of ``group`` is to blame for: by the tokens it would compute alone."""
    if len(group) == 1:
        return [1.0]
    whole = sum(one.unique_tokens for one in group) or 1
    return [one.unique_tokens / whole for one in group]


def _input(request: Any) -> tuple[int, ...]:
    """What the model reads of a request."""
    if isinstance(request, LoglikelihoodRequest):
        return request.context + request.continuation[:-1]
    return tuple(request.prompt)


def _length(request: Any) -> int:
    if isinstance(request, LoglikelihoodRequest):
        return len(request.context) + max(0, len(request.continuation) - 1)
    return len(request.prompt)


def _unique(keys: set[bytes]) -> int:
    """Tokens of the trie of ``keys``."""
    from autoeval.models.trie import Walk

    return Walk(list(keys)).size if keys else 0
