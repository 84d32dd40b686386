"""Texts to token ids, and where a continuation begins in them."""

from __future__ import annotations

import math
from collections.abc import Callable

from autoeval.models.requests import LanguageModel, LoglikelihoodRequest, LoglikelihoodResult
from autoeval.openicl.sample import Sample


class Encoder:
    """Text to token ids with the special tokens that the tokenizer adds itself (or not); each text once."""

    def __init__(self, model: LanguageModel, special: bool = True) -> None:
        self._tokenizer = model.tokenizer
        self._special = special
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}

    def __call__(self, text: str, special: bool | None = None) -> tuple[int, ...]:
        special = self._special if special is None else special
        key = (text, special)
        if key not in self._known:
            # verbose: texts longer than the window are our business, not worth a warning each
            ids = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            self._known[key] = tuple(ids)
        return self._known[key]


def encode_pair(encode: Callable[..., tuple[int, ...]], context: str, continuation: str) -> LoglikelihoodRequest:
    """Tokenize both together and cut where the context's own tokens end (lm-evaluation-harness's rule).

    Spaces at the end of the context go to the continuation.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    return encode_after(encode, stripped, continuation)


def encode_after(encode: Callable[..., tuple[int, ...]], context: str, continuation: str) -> LoglikelihoodRequest:
    """As ``encode_pair``, with the context as it is."""
    if not context:
        return LoglikelihoodRequest((), encode(continuation, special=False))
    head, whole = encode(context), encode(context + continuation)
    return LoglikelihoodRequest(whole[: len(head)], whole[len(head) :])


def truncation_notes(dropped: int, cut: int) -> dict[str, int]:
    """What had to go for the prompt to fit the window."""
    notes = {}
    if dropped > 0:
        notes["dropped in-context examples"] = dropped
    if cut > 0:
        notes["truncated tokens"] = cut
    return notes


def finite(result: LoglikelihoodResult, sample: Sample) -> float:
    """The total log-probability. Raises ``ValueError`` for NaN and infinities."""
    total = result.logprob
    if not math.isfinite(total):
        raise ValueError(f"{sample.row.where}: the log-probability is {total}: the model's weights are broken")
    return total
