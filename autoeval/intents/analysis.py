"""Mismatched intents and similar intents of a data set."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy
from tqdm import tqdm

from autoeval.intents.pairs import blocks, similar_pairs
from autoeval.intents.records import Record, questions

logger = logging.getLogger(__name__)


class Embeds(Protocol):
    def embed(self, texts: Sequence[str], *, batch_size: int = ..., progress: Any = ...) -> numpy.ndarray: ...


def analyze(
    records: Sequence[Record],
    embedder: Embeds,
    *,
    similarity_threshold: float,
    intent_similarity_threshold: float,
    most: int = 100_000,
    batch_size: int = 64,
) -> dict[str, list[dict[str, Any]]]:
    """``mismatched_intents`` and ``similar_intents``, the most similar first, at most ``most`` of each.

    A pair of questions is mismatched when their cosine is at least ``similarity_threshold`` and their intents are
    different texts; of two records the most similar questions count. Two intents are similar when the cosine of their
    texts is at least ``intent_similarity_threshold``; their line numbers are those where each comes first.
    """
    asked = questions(records)
    intents = list(dict.fromkeys(record.intent for record in records))
    number = {intent: place for place, intent in enumerate(intents)}
    texts = [question.text for question in asked]
    with _bar(len(set(texts)) + len(intents), "embedding", "text") as bar:
        vectors = embedder.embed(texts, batch_size=batch_size, progress=bar.update)
        names = embedder.embed([_words(intent) for intent in intents], batch_size=batch_size, progress=bar.update)
    groups = numpy.array([number[question.record.intent] for question in asked])
    with _bar(blocks(len(asked)), "comparing questions", "block") as bar:
        found = similar_pairs(vectors, groups, similarity_threshold, most=most, progress=bar.update)
    if found.total > len(found.first):
        logger.warning("%d pairs of questions are mismatched: the %d most similar are listed", found.total, most)
    alike = similar_pairs(names, numpy.arange(len(intents)), intent_similarity_threshold, most=most)
    if alike.total > len(alike.first):
        logger.warning("%d pairs of intents are similar: the %d most similar are listed", alike.total, most)
    first_line = {record.intent: record.line for record in reversed(records)}
    mismatched: dict[tuple[int, int], dict[str, Any]] = {}
    for i, j in zip(found.first, found.second, strict=True):
        one, other = asked[int(i)], asked[int(j)]
        mismatched.setdefault(
            (one.record.line, other.record.line),
            {
                "questionPair": [one.text, other.text],
                "intent1": one.record.intent,
                "intent2": other.record.intent,
                "answer1": one.record.output,
                "answer2": other.record.output,
                "lineNumbers": [one.record.line, other.record.line],
            },
        )
    return {
        "mismatched_intents": list(mismatched.values()),
        "similar_intents": [
            {
                "intentPair": [intents[int(i)], intents[int(j)]],
                "lineNumbers": [first_line[intents[int(i)]], first_line[intents[int(j)]]],
            }
            for i, j in zip(alike.first, alike.second, strict=True)
        ],
    }


def _words(intent: str) -> str:
    """An intent's name as words: ``card_arrival`` is what its author calls "card arrival"."""
    return intent.replace("_", " ")


def _bar(total: int, what: str, unit: str) -> tqdm:
    return tqdm(
        total=total, desc=what, unit=unit, file=sys.stderr, mininterval=0.5, disable=None if total > 1 else True
    )
