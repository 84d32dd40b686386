"""Generation in batches of similar length, with a key-value cache, from which finished rows leave."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoeval.models.network import Network
from autoeval.models.requests import GenerationRequest, GenerationResult
from autoeval.models.scoring import check_tokens, free_memory, refuse_nan

logger = logging.getLogger(__name__)


@dataclass
class _Row:
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


def decode(model: Any, network: Network, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """Answer ``requests`` in order; ``HuggingFaceModel.generate`` says how."""
    rows = [_row(model, network.vocab_size, index, request) for index, request in enumerate(requests)]
    waiting = sorted((row for row in rows if row.request.max_new_tokens), key=lambda row: row.size, reverse=True)
    budget = model.batch_tokens
    while waiting:
        batch = waiting[: max(1, budget // waiting[0].size)]
        try:
            if network.caches:
                _decode_batch(model, network, batch)
            else:
                _decode_anew(model, network, batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            budget = model.batch_tokens = max(1, len(batch) * waiting[0].size // 2)
            logger.warning("out of memory: going on with batches of %d tokens", budget)
            free_memory(model.device)
            continue
        del waiting[: len(batch)]
    return [_result(model, row) for row in rows]


def _row(model: Any, vocab_size: int, index: int, request: GenerationRequest) -> _Row:
    prompt = request.prompt or (model.prefix_token,)
    check_tokens(prompt, vocab_size)
    room = model.max_seq_len - request.max_new_tokens
    if room < 1:
        raise ValueError(
            f"{request.max_new_tokens} new tokens leave no room for a prompt in the window of {model.max_seq_len}"
        )
    if not 0 < request.top_p <= 1 or request.temperature < 0:
        raise ValueError(f"temperature {request.temperature} and top_p {request.top_p}: expected >= 0, and in (0, 1]")
    excess = max(0, len(prompt) - room)
    model.cost.prompt_tokens += len(prompt) - excess
    return _Row(index, request, prompt[excess:], excess, model.stop_ids | _special(model.tokenizer, request.stop))


def _special(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """The ids of stop strings that are special tokens (``<|im_end|>``): decoding leaves these out of the text."""
    if not stop:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, entry in added.items() if entry.special and entry.content in stop)


def _decode_batch(model: Any, network: Network, rows: Sequence[_Row]) -> None:
    """Prompts are padded on the left, so that all rows grow at the same place; positions do not count padding."""
    active = list(rows)
    for row in active:
        row.restart()
    length = max(len(row.prompt) for row in active)
    inputs = torch.zeros((len(active), length), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for number, row in enumerate(active):
        inputs[number, length - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[number, length - len(row.prompt) :] = 1
    inputs, mask = inputs.to(network.device), mask.to(network.device)
    cache: Any = None
    while True:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        logits, cache = network.step(inputs, mask, positions, cache)
        chosen = _advance(model, active, logits, computed=inputs.numel())
        staying = [number for number, row in enumerate(active) if not row.finish_reason]
        if not staying:
            return
        if len(staying) < len(active):
            kept = torch.tensor(staying, device=network.device)
            cache.batch_select_indices(kept)
            mask, chosen = mask[kept], chosen[kept]
            active = [active[number] for number in staying]
        inputs = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones((len(active), 1))], dim=1)


def _decode_anew(model: Any, network: Network, rows: Sequence[_Row]) -> None:
    """Without a cache: the whole of every row for every token, padded on the right, where nothing sees the padding."""
    active = list(rows)
    for row in active:
        row.restart()
    while active:
        texts = [[*row.prompt, *row.tokens] for row in active]
        inputs = torch.zeros((len(active), max(map(len, texts))), dtype=torch.long)
        for number, text in enumerate(texts):
            inputs[number, : len(text)] = torch.tensor(text)
        hidden = network.hidden(inputs.to(network.device))
        last = hidden[torch.arange(len(active)), torch.tensor([len(text) - 1 for text in texts])]
        _advance(model, active, network.logits(last), computed=inputs.numel())
        active = [row for row in active if not row.finish_reason]


def _advance(model: Any, rows: Sequence[_Row], logits: torch.Tensor, *, computed: int) -> torch.Tensor:
    """Choose and keep one more token of each row; ``logits`` [rows, vocabulary]. Returns the tokens [rows]."""
    model.cost.computed_tokens += computed
    model.cost.extra["logit_positions"] = model.cost.extra.get("logit_positions", 0) + len(rows)
    chosen = _choose(logits, rows)
    logprobs = _chosen_logprobs(logits, chosen)
    refuse_nan(logprobs)  # also when the token ends the text and would leave no trace
    _append(model, rows, chosen.tolist(), logprobs)
    return chosen


def _choose(logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
    """The next token of each row; ``logits`` [rows, vocabulary]. Each sampled row draws from its own seed."""
    chosen = logits.argmax(dim=-1)
    for number, row in enumerate(rows):
        if row.generator is not None:
            chosen[number] = _sample(logits[number], row.request, row.generator)
    return chosen


def _sample(logits: torch.Tensor, request: GenerationRequest, generator: torch.Generator) -> int:
    """Nucleus sampling by the inverse of the cumulative distribution: one uniform number a token, drawn on the CPU."""
    probabilities, tokens = torch.softmax(logits.double().cpu() / request.temperature, dim=-1).sort(descending=True)
    cumulative = probabilities.cumsum(dim=0)
    kept = int((cumulative - probabilities < request.top_p).sum())  # the smallest set that reaches top_p
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[kept - 1]
    place = int(torch.searchsorted(cumulative[:kept].contiguous(), drawn, right=True))
    return int(tokens[min(place, kept - 1)])


def _chosen_logprobs(logits: torch.Tensor, chosen: torch.Tensor) -> list[float]:
    picked = logits.gather(1, chosen[:, None]).squeeze(1)
    return (picked - torch.logsumexp(logits, dim=-1)).tolist()


def _append(model: Any, rows: Sequence[_Row], chosen: Sequence[int], logprobs: Sequence[float]) -> None:
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


def _has_stop(tokenizer: Any, row: _Row) -> bool:
    """A stop string ends in the newest token, so only the end of the text is decoded: 4 bytes a character, and some."""
    if not row.request.stop:
        return False
    tail = row.tokens[-(4 * max(map(len, row.request.stop)) + 8) :]
    end = _text(tokenizer, tail)
    return any(stop in end for stop in row.request.stop)


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    # Cleaning up spaces would change what the model wrote.
    return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _result(model: Any, row: _Row) -> GenerationResult:
    text = _text(model.tokenizer, row.tokens)
    ends = [place for place in (text.find(stop) for stop in row.request.stop) if place >= 0]
    kept = len(row.tokens)
    if ends:
        text = text[: min(ends)]
        kept = next(n for n in range(kept + 1) if _text(model.tokenizer, row.tokens[:n]).startswith(text))
    reason = row.finish_reason or "length"
    return GenerationResult(text, tuple(row.tokens[:kept]), tuple(row.logprobs[:kept]), reason, row.truncated)
