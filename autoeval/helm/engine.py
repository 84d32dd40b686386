"""HELM's requests answered by a ``LanguageModel``, all of a run together: it batches as it likes.

This module imports HELM: only ``runner.py`` imports it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from helm.common.request import GeneratedOutput, Request, RequestResult, Token

from autoeval.helm.tokens import prompt_ids, token_texts
from autoeval.models.requests import GenerationRequest, LanguageModel, LoglikelihoodRequest

_Key = TypeVar("_Key", bound=Hashable)


def answer(model: LanguageModel, requests: Sequence[Request], *, needs_logprobs: bool = False) -> list[RequestResult]:
    """Answer ``requests`` in order. Raises ``ValueError`` for what a text language model cannot do.

    ``needs_logprobs``: also when the model tells no log-probabilities of what it generates, and scores depend on them.
    """
    started = time.time()
    for request in requests:
        _refuse_what_is_no_text(request)
    prompts = prompt_ids(model.tokenizer, [request.prompt for request in requests])
    echoes = _echo(model, requests, prompts)
    generated = _generate(model, requests, prompts)
    if needs_logprobs and any(ids and not logprobs for several in generated for _, ids, logprobs, _ in several):
        raise ValueError("it ranks by the log-probabilities of generated answers, and this server tells none")
    text_of = token_texts(model.tokenizer, _shown(requests, prompts, generated))
    seconds = time.time() - started
    results = []
    for index, request in enumerate(requests):
        completions = [
            _completion(request, echoes[index], output, prompts[index], text_of) for output in generated[index]
        ]
        results.append(
            RequestResult(
                success=True,
                embedding=[],
                completions=completions,
                cached=False,
                request_time=seconds / len(requests),
                request_datetime=int(started),
                batch_size=len(requests),
                batch_request_time=seconds,
            )
        )
    return results


def _refuse_what_is_no_text(request: Request) -> None:
    if request.embedding or request.multimodal_prompt is not None or request.messages:
        raise ValueError("a request for embeddings, images or chat messages; this engine completes text")


def _echo(
    model: LanguageModel, requests: Sequence[Request], prompts: Sequence[tuple[int, ...]]
) -> list[tuple[float, ...]]:
    """Log-probabilities of every prompt token where the request echoes it: 0 for the first, as HELM's client gives."""
    asked = {prompts[i] for i, request in enumerate(requests) if request.echo_prompt and len(prompts[i]) > 1}
    unique = sorted(asked)  # neighbours share their prefix
    scored = model.loglikelihoods([LoglikelihoodRequest(prompt[:1], prompt[1:]) for prompt in unique])
    logprobs = {prompt: (0.0, *result.token_logprobs) for prompt, result in zip(unique, scored, strict=True)}
    return [
        logprobs.get(prompt, (0.0,) * len(prompt)) if request.echo_prompt else ()
        for request, prompt in zip(requests, prompts, strict=True)
    ]


_Output = tuple[str, tuple[int, ...], tuple[float, ...], str]  # text, token ids, their log-probabilities, finish reason
_NOTHING: _Output = ("", (), (), "length")


def _generate(
    model: LanguageModel, requests: Sequence[Request], prompts: Sequence[tuple[int, ...]]
) -> list[list[_Output]]:
    """``num_completions`` outputs per request. Greedy completions are all the same and computed once."""
    wanted = [
        [_generation_request(request, prompt, index) for index in range(request.num_completions)]
        if request.max_tokens > 0
        else []
        for request, prompt in zip(requests, prompts, strict=True)
    ]
    unique = _unique([single for several in wanted for single in several])
    outputs = {
        single: (result.text, result.tokens, result.token_logprobs, result.finish_reason)
        for single, result in zip(unique, model.generate(unique), strict=True)
    }
    return [
        [outputs[single] for single in several] or [_NOTHING] * request.num_completions
        for request, several in zip(requests, wanted, strict=True)
    ]


def _generation_request(request: Request, prompt: tuple[int, ...], index: int) -> GenerationRequest:
    sampled = request.temperature > 0
    return GenerationRequest(
        prompt=prompt,
        max_new_tokens=request.max_tokens,
        stop=tuple(request.stop_sequences),
        temperature=request.temperature,
        top_p=request.top_p if sampled else 1.0,
        seed=_seed(request, index) if sampled else None,
    )


def _seed(request: Request, index: int) -> int:
    """The same for the same prompt, trial (``random``) and completion, on every machine and for every checkpoint."""
    content = f"{request.random}\x00{index}\x00{request.prompt}"
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big")


def _shown(
    requests: Sequence[Request], prompts: Sequence[tuple[int, ...]], generated: Sequence[Sequence[_Output]]
) -> set[int]:
    """The tokens that completions tell the text of."""
    ids: set[int] = set()
    for request, prompt, several in zip(requests, prompts, generated, strict=True):
        if request.echo_prompt:
            ids.update(prompt)
        for output in several:
            ids.update(output[1])
    return ids


def _completion(
    request: Request, echoed: Sequence[float], output: _Output, prompt: Sequence[int], text_of: Mapping[int, str]
) -> GeneratedOutput:
    text, ids, logprobs, finish_reason = output
    # A server tells no log-probabilities of what it generates; HELM's own clients then say 0 too.
    pairs = list(zip(ids, logprobs or (0.0,) * len(ids), strict=True))
    if request.echo_prompt:
        text = request.prompt + text
        pairs = [*zip(prompt, echoed, strict=True), *pairs]
    tokens = [Token(text=text_of[token], logprob=float(logprob)) for token, logprob in pairs]
    total = sum(token.logprob for token in tokens)
    return GeneratedOutput(text=text, logprob=total, tokens=tokens, finish_reason={"reason": finish_reason})


def _unique(values: Sequence[_Key]) -> list[_Key]:
    return list(dict.fromkeys(values))
