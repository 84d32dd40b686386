"""Generation: continuous batching (``continuous``), or for models that cannot, batches from which finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autoeval.models.continuous import decode_walking
from autoeval.models.network import Network
from autoeval.models.requests import GenerationRequest, GenerationResult
from autoeval.models.scoring import check_tokens, count, halve, refuse_nan
from autoeval.models.text import Row, append, pick, result


def decode(model: Any, network: Network, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """Answer ``requests`` in order; ``HuggingFaceModel.generate`` says how."""
    rows = [_row(model, network.vocab_size, index, request) for index, request in enumerate(requests)]
    wanted = [row for row in rows if row.request.max_new_tokens]
    (decode_walking if network.shares else _decode_batches)(model, network, wanted)
    return [result(model, row) for row in rows]


def _decode_batches(model: Any, network: Network, rows: Sequence[Row]) -> None:
    """For models that cannot walk a trie: batches of rows of similar length."""
    waiting = sorted(rows, key=lambda row: row.size, reverse=True)
    while waiting:
        batch = waiting[: 1 if network.switches_rope else max(1, model.batch_tokens // waiting[0].size)]
        try:
            (_decode_batch if network.caches else _decode_anew)(model, network, batch)
        except torch.OutOfMemoryError as error:
            halve(model, len(batch) * waiting[0].size if len(batch) > 1 else 1, error)
            continue
        del waiting[: len(batch)]


def _row(model: Any, vocab_size: int, index: int, request: GenerationRequest) -> Row:
    prompt = request.prompt or (model.prefix_token,)
    check_tokens(prompt, vocab_size)
    room = model.max_seq_len - request.max_new_tokens
    if room < 1:
        raise ValueError(
            f"{request.max_new_tokens} new tokens leave no room for a prompt in the window of {model.max_seq_len}"
        )
    if not 0 < request.top_p <= 1 or request.temperature < 0:
        raise ValueError(f"temperature {request.temperature} and top_p {request.top_p}: expected >= 0, and in (0, 1]")
    if request.top_k < 0 or not 0 <= request.min_new_tokens <= request.max_new_tokens:
        raise ValueError(
            f"top_k {request.top_k} and min_new_tokens {request.min_new_tokens}: expected >= 0, and at most "
            f"max_new_tokens ({request.max_new_tokens})"
        )
    excess = max(0, len(prompt) - room)
    model.cost.prompt_tokens += len(prompt) - excess
    return Row(index, request, prompt[excess:], excess, model.stop_ids | _special(model.tokenizer, request.stop))


def _special(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """The ids of stop strings that are special tokens (``<|im_end|>``): decoding leaves these out of the text."""
    if not stop:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, entry in added.items() if entry.special and entry.content in stop)


def _decode_batch(model: Any, network: Network, rows: Sequence[Row]) -> None:
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


def _decode_anew(model: Any, network: Network, rows: Sequence[Row]) -> None:
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


def _advance(model: Any, rows: Sequence[Row], logits: torch.Tensor, *, computed: int) -> torch.Tensor:
    """Choose and keep one more token of each row; ``logits`` [rows, vocabulary]. Returns the tokens [rows]."""
    model.cost.computed_tokens += computed
    count(model.cost, logit_positions=len(rows))
    chosen = _choose(logits, rows)
    logprobs = _chosen_logprobs(logits, chosen)
    refuse_nan(logprobs)  # also when the token ends the text and would leave no trace
    append(model, rows, chosen.tolist(), logprobs)
    return chosen


def _choose(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """The next token of each row; ``logits`` [rows, vocabulary]. Each sampled row draws from its own seed."""
    chosen = logits.argmax(dim=-1)
    for number, row in enumerate(rows):
        if row.has_rules:
            chosen[number] = pick(logits[number], row)
    return chosen


def _chosen_logprobs(logits: torch.Tensor, chosen: torch.Tensor) -> list[float]:
    picked = logits.gather(1, chosen[:, None]).squeeze(1)
    return (picked - torch.logsumexp(logits, dim=-1)).tolist()
