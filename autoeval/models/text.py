"""A text that is being generated: its tokens, where it ends, and how a token is drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoeval.models.requests import GenerationRequest, GenerationResult


@dataclass
class Row:
    """One request under way."""

    index: int
    request: GenerationRequest
    prompt: tuple[int, ...]
    truncated: int
    ends: frozenset[int]  # tokens that end the text
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    generator: torch.Generator | None = None

    @property
    def has_rules(self) -> bool:
        """Whether the next token may be another than the likeliest one."""
        return self.generator is not None or len(self.tokens) < self.request.min_new_tokens

    @property
    def size(self) -> int:
        """Tokens of cache it needs in the end."""
        return len(self.prompt) + self.request.max_new_tokens

    def restart(self) -> None:
        """Forget what was generated; the same seed gives the same text again."""
        self.tokens.clear()
        self.logprobs.clear()
        self.finish_reason = ""
        if self.request.temperature > 0:
            seed = self.request.seed
            self.generator = torch.Generator().manual_seed(random.getrandbits(63) if seed is None else seed)


def pick(logits: torch.Tensor, row: Row) -> int:
    """The next token of ``row`` by its request's rules; ``logits`` [vocabulary]."""
    if len(row.tokens) < row.request.min_new_tokens:
        logits = logits.index_fill(0, torch.tensor(sorted(row.ends), dtype=torch.long, device=logits.device), -math.inf)
    return int(logits.argmax()) if row.generator is None else _sample(logits, row.request, row.generator)


def _sample(logits: torch.Tensor, request: GenerationRequest, generator: torch.Generator) -> int:
    """By the inverse of the cumulative distribution: one uniform number a token, drawn on the CPU."""
    scaled = logits.double().cpu() / request.temperature
    if 0 < request.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(request.top_k).values[-1], -math.inf)
    probabilities, tokens = torch.softmax(scaled, dim=-1).sort(descending=True)
    cumulative = probabilities.cumsum(dim=0)
    kept = int((cumulative - probabilities < request.top_p).sum())  # the smallest set that reaches top_p
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[kept - 1]
    place = int(torch.searchsorted(cumulative[:kept].contiguous(), drawn, right=True))
    return int(tokens[min(place, kept - 1)])


def append(model: Any, rows: Sequence[Row], chosen: Sequence[int], logprobs: Sequence[float]) -> None:
    for row, token, logprob in zip(rows, chosen, logprobs, strict=True):
        model.cost.generated_tokens += 1
        if token in row.ends:
            row.finish_reason = "stop"
            continue
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if _has_stop(model.tokenizer, row):
            row.finish_reason = "stop"
        elif len(row.tokens) == row.request.max_new_tokens:
            row.finish_reason = "length"


def _has_stop(tokenizer: Any, row: Row) -> bool:
    """A stop string ends in the newest token, so only the end of the text is decoded: 4 bytes a character, and some."""
    if not row.request.stop:
        return False
    tail = row.tokens[-(4 * max(map(len, row.request.stop)) + 8) :]
    end = _text(tokenizer, tail)
    return any(stop in end for stop in row.request.stop)


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    # Cleaning up spaces would change what the model wrote.
    return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def result(model: Any, row: Row) -> GenerationResult:
    text = _text(model.tokenizer, row.tokens)
    ends = [place for place in (text.find(stop) for stop in row.request.stop) if place >= 0]
    kept = len(row.tokens)
    if ends:
        text = text[: min(ends)]
        kept = next(n for n in range(kept + 1) if _text(model.tokenizer, row.tokens[:n]).startswith(text))
    reason = row.finish_reason or "length"
    return GenerationResult(text, tuple(row.tokens[:kept]), tuple(row.logprobs[:kept]), reason, row.truncated)
