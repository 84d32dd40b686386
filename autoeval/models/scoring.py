"""Log-likelihoods in batches: one row per distinct input, logits only where a continuation token is predicted."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoeval.models.network import Network
from autoeval.models.requests import LoglikelihoodRequest, LoglikelihoodResult

logger = logging.getLogger(__name__)

_Answer = tuple[list[float], list[bool]]  # log-probabilities, "was the most likely token"


@dataclass
class _Row:
    """An input computed once, and the requests answered from it: (request, first position, continuation)."""

    tokens: tuple[int, ...]
    asked: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)


def score(model: Any, network: Network, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
    """Answer ``requests`` in order; ``HuggingFaceModel.loglikelihoods`` says how."""
    rows, truncated = _plan(model, network.vocab_size, requests)
    answers: dict[int, _Answer] = {}
    waiting = sorted(rows, key=lambda row: len(row.tokens), reverse=True)  # the largest batch comes first
    budget = model.batch_tokens
    while waiting:
        size = max(1, budget // len(waiting[0].tokens))
        try:
            answers.update(_score_batch(network, waiting[:size], model.cost))
        except torch.OutOfMemoryError:
            size = min(size, len(waiting))
            if size == 1:
                raise
            budget = model.batch_tokens = max(1, size * len(waiting[0].tokens) // 2)
            logger.warning("out of memory: going on with batches of %d tokens", budget)
            free_memory(model.device)
            continue
        del waiting[:size]
    results = []
    for index, request in enumerate(requests):
        logprobs, greedy = answers[index] if request.continuation else ([], [])
        results.append(LoglikelihoodResult(tuple(logprobs), all(greedy), truncated[index]))
    return results


def _plan(model: Any, vocab_size: int, requests: Sequence[LoglikelihoodRequest]) -> tuple[list[_Row], list[int]]:
    """Rows with their requests, and the tokens cut from each request's context.

    The input is everything but the last token, so requests that differ only there (the labels of a multiple-choice
    question) are one row.
    """
    rows: dict[tuple[int, ...], _Row] = {}
    truncated = []
    for index, request in enumerate(requests):
        context = request.context or ((model.prefix_token,) if request.continuation else ())
        check_tokens((*context, *request.continuation), vocab_size)
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
        rows.setdefault(tokens, _Row(tokens)).asked.append((index, len(context) - 1, request.continuation))
    return list(rows.values()), truncated


def _score_batch(network: Network, rows: Sequence[_Row], cost: Any) -> dict[int, _Answer]:
    length = max(len(row.tokens) for row in rows)
    inputs = torch.zeros((len(rows), length), dtype=torch.long)
    for number, row in enumerate(rows):
        inputs[number, : len(row.tokens)] = torch.tensor(row.tokens)
    positions: list[int] = []  # in the flattened batch
    targets: list[int] = []
    for number, row in enumerate(rows):
        for _, first, continuation in row.asked:
            positions.extend(range(number * length + first, number * length + first + len(continuation)))
            targets.extend(continuation)
    hidden = network.hidden(inputs.to(network.device)).flatten(0, 1)
    logprobs, greedy = _logprobs(network, hidden, positions, targets)
    refuse_nan(logprobs)
    cost.computed_tokens += inputs.numel()
    cost.extra["logit_positions"] = cost.extra.get("logit_positions", 0) + len(set(positions))
    answers = {}
    start = 0
    for row in rows:
        for index, _, continuation in row.asked:
            end = start + len(continuation)
            answers[index] = (logprobs[start:end], greedy[start:end])
            start = end
    return answers


def _logprobs(
    network: Network, hidden: torch.Tensor, positions: Sequence[int], targets: Sequence[int]
) -> tuple[list[float], list[bool]]:
    """log p(target) after each position of ``hidden`` [batch * time, d], and whether no token is more likely.

    A position that several requests ask for is projected once.
    """
    device = hidden.device
    unique, inverse = torch.unique(torch.tensor(positions, device=device), return_inverse=True)
    wanted = torch.tensor(targets, device=device)
    order = torch.argsort(inverse, stable=True)
    logprobs = torch.empty(len(positions), device=device)
    greedy = torch.empty(len(positions), dtype=torch.bool, device=device)
    chunk = network.rows_at_once()
    sorted_inverse = inverse[order].contiguous()
    for start in range(0, len(unique), chunk):
        logits = network.logits(hidden[unique[start : start + chunk]])
        bounds = torch.searchsorted(sorted_inverse, torch.tensor([start, start + chunk], device=device)).tolist()
        which = order[bounds[0] : bounds[1]]
        rows = inverse[which] - start
        picked = logits[rows, wanted[which]]
        logprobs[which] = picked - torch.logsumexp(logits, dim=-1)[rows]
        greedy[which] = logits.argmax(dim=-1)[rows] == wanted[which]
    return logprobs.tolist(), greedy.tolist()


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse ids outside the embedding: on a GPU they end the whole process."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise ValueError(f"token id {wrong} is outside the model's vocabulary of {vocab_size}; is it its tokenizer?")


def refuse_nan(logprobs: Sequence[float]) -> None:
    """A broken model has no score: NaN would otherwise rank somewhere, or end a text."""
    if any(map(math.isnan, logprobs)):
        raise ValueError("the model's log-probabilities are not a number: its weights are broken")


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
