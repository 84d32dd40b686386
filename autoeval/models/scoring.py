"""Log-likelihoods: every distinct token once, logits only where a continuation token is predicted.

The inputs of all requests are one trie (``trie.Walk``), walked in passes of as many tokens as the budget has. Models
that cannot walk a trie get plain batches, one row per distinct input.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autoeval.models.attention import Part, State
from autoeval.models.memory import tokens_within
from autoeval.models.network import Network
from autoeval.models.projection import log_probabilities
from autoeval.models.requests import LoglikelihoodRequest, LoglikelihoodResult
from autoeval.models.trie import Segment, Walk, key_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A request: ``continuation`` is predicted from position ``first`` of the input on."""

    index: int
    first: int
    continuation: tuple[int, ...]


@dataclass
class _Questions:
    """What is asked of the tokens of the walk: ``targets`` after ``places`` (ascending), and the answers [questions]."""

    places: np.ndarray
    targets: np.ndarray
    logprobs: np.ndarray
    greedy: np.ndarray


def score(model: Any, network: Network, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
    """Answer ``requests`` in order; ``HuggingFaceModel.loglikelihoods`` says how."""
    inputs, truncated = _plan(model, requests)
    walk = Walk(list(inputs))
    for row in walk.rows:
        check_tokens(row, network.vocab_size)
    asked = list(inputs.values())
    check_tokens([token for several in asked for one in several for token in one.continuation], network.vocab_size)
    questions, owners, slices = _questions(walk, asked)
    (_score_walk if network.shares else _score_rows)(model, network, walk, questions)
    count(model.cost, unique_tokens=walk.size, logit_positions=len(np.unique(questions.places)))
    results: list[Any] = [LoglikelihoodResult((), True, cut) for cut in truncated]
    for one, here in zip(owners, slices, strict=True):
        values = tuple(questions.logprobs[here].tolist())
        results[one.index] = LoglikelihoodResult(values, bool(questions.greedy[here].all()), truncated[one.index])
    return results


def _plan(model: Any, requests: Sequence[LoglikelihoodRequest]) -> tuple[dict[bytes, list[_Asked]], list[int]]:
    """Distinct inputs with their requests, and the tokens cut from each request's context.

    The input is everything but the last token, so requests that differ only there (the labels of a multiple-choice
    question) are one.
    """
    inputs: dict[bytes, list[_Asked]] = {}
    truncated = []
    for index, request in enumerate(requests):
        context = request.context or ((model.prefix_token,) if request.continuation else ())
        excess = max(0, len(context) + len(request.continuation) - 1 - model.max_seq_len)
        if request.continuation and excess >= len(context):
            raise ValueError(
                f"a continuation of {len(request.continuation)} tokens does not fit the window of {model.max_seq_len}"
            )
        truncated.append(excess)
        if not request.continuation:
            continue
        context = context[excess:]
        tokens = context + request.continuation[:-1]
        model.cost.prompt_tokens += len(tokens)
        inputs.setdefault(key_of(tokens), []).append(_Asked(index, len(context) - 1, request.continuation))
    return inputs, truncated


def _questions(walk: Walk, asked: Sequence[Sequence[_Asked]]) -> tuple[_Questions, list[_Asked], list[np.ndarray]]:
    """The questions in walking order, and for each request the numbers of its own."""
    owners: list[_Asked] = []
    places: list[np.ndarray] = []
    targets: list[int] = []
    for number, path in walk.places():
        for one in asked[number]:
            owners.append(one)
            places.append(path[one.first : one.first + len(one.continuation)].copy())
            targets.extend(one.continuation)
    where = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
    order = np.argsort(where, kind="stable")
    number_of = np.empty_like(order)
    number_of[order] = np.arange(len(order))
    ends = np.cumsum([len(one.continuation) for one in owners])
    slices = np.split(number_of, ends[:-1]) if owners else []
    answers = np.zeros(len(where), dtype=np.float32), np.zeros(len(where), dtype=bool)
    return _Questions(where[order], np.asarray(targets, dtype=np.int64)[order], *answers), owners, slices


def _score_walk(model: Any, network: Network, walk: Walk, questions: _Questions) -> None:
    state = State(capacity=walk.longest, packed=network.packed)
    done, lost = 0, False
    while done < walk.size:
        until = min(walk.size, done + tokens_within(network, model.batch_tokens, walk.longest))
        try:
            if lost:  # a pass that failed has written over the path
                for part in walk.path_to(done, model.batch_tokens):
                    _pass(model, network, walk, [part], state, np.zeros(0, dtype=np.int64))
                lost = False
            here = slice(*np.searchsorted(questions.places, [done, until]))
            wanted, which = np.unique(questions.places[here] - done, return_inverse=True)
            hidden = _pass(model, network, walk, walk.segments(done, until), state, wanted)
            _answer(network, hidden, questions, here, which)
        except torch.OutOfMemoryError as error:
            halve(model, until - done, error)
            lost = True
            continue
        done = until


def _pass(
    model: Any, network: Network, walk: Walk, segments: Sequence[Segment], state: State, wanted: np.ndarray
) -> torch.Tensor:
    """Compute ``segments`` -> hidden states [wanted, d] of those of its tokens."""
    tokens, positions = walk.tokens(segments)
    starts = np.cumsum([0, *(segment.length for segment in segments)]).tolist()
    state.begin([Part(at, one.depth, one.length) for at, one in zip(starts, segments, strict=False)])
    hidden = network.walk(network.place(tokens), network.place(positions), state, wanted)
    model.cost.computed_tokens += len(tokens)
    return hidden


def _score_rows(model: Any, network: Network, walk: Walk, questions: _Questions) -> None:
    """Every row by itself, padded on the right; what several rows are asked alike is answered from one of them."""
    waiting = sorted(range(len(walk.rows)), key=lambda number: len(walk.rows[number]), reverse=True)
    while waiting:
        longest = len(walk.rows[waiting[0]])
        size = min(len(waiting), max(1, model.batch_tokens // longest))
        if network.switches_rope:
            size = 1
        try:
            _score_batch(model, network, walk, waiting[:size], questions)
        except torch.OutOfMemoryError as error:
            halve(model, size * longest if size > 1 else 1, error)
            continue
        del waiting[:size]


def _score_batch(model: Any, network: Network, walk: Walk, numbers: Sequence[int], questions: _Questions) -> None:
    length = max(len(walk.rows[number]) for number in numbers)
    inputs = np.zeros((len(numbers), length), dtype=np.int64)
    for line, number in enumerate(numbers):
        inputs[line, : len(walk.rows[number])] = walk.rows[number]
    hidden = network.hidden(network.place(inputs)).flatten(0, 1)
    model.cost.computed_tokens += inputs.size
    for line, number in enumerate(numbers):
        first, last = walk.starts[number : number + 2]
        here = slice(*np.searchsorted(questions.places, [first, last]))
        rows = questions.places[here] - first + walk.shared[number] + line * length
        wanted, which = np.unique(rows, return_inverse=True)
        _answer(network, hidden[network.place(wanted)], questions, here, which)


def _answer(network: Network, hidden: torch.Tensor, questions: _Questions, here: slice, which: np.ndarray) -> None:
    """Answer ``questions[here]``, each from the row ``which`` (ascending) of ``hidden`` [rows, d]."""
    if not len(which):
        return
    found = log_probabilities(network, hidden, network.place(which), network.place(questions.targets[here]))
    logprobs, greedy = (values.cpu().numpy() for values in found)
    refuse_nan(logprobs)
    questions.logprobs[here], questions.greedy[here] = logprobs, greedy


def halve(model: Any, tokens: int, error: torch.OutOfMemoryError) -> None:
    """After running out of memory with ``tokens`` in one pass. Raises ``error`` when that was one token."""
    if tokens <= 1:
        raise error
    model.batch_tokens = max(1, tokens // 2)
    logger.warning("out of memory: going on with batches of %d tokens", model.batch_tokens)
    free_memory(model.device)


def count(cost: Any, **counted: float) -> None:
    for name, value in counted.items():
        cost.extra[name] = cost.extra.get(name, 0) + value


def check_tokens(tokens: Any, vocab_size: int) -> None:
    """Refuse ids outside the embedding: on a GPU they end the whole process."""
    ids = np.asarray(tokens, dtype=np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        wrong = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise ValueError(f"token id {wrong} is outside the model's vocabulary of {vocab_size}; is it its tokenizer?")


def refuse_nan(logprobs: Any) -> None:
    """A broken model has no score: NaN would otherwise rank somewhere, or end a text."""
    if np.isnan(logprobs).any():
        raise ValueError("the model's log-probabilities are not a number: its weights are broken")


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
