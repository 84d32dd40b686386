"""What the other rooms ask a model, and what it answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """Score ``continuation`` given ``context`` (token ids). An empty context scores from the prefix token on.

    ``context`` may be empty only when ``continuation`` has at least one token; then the first token is conditioned on
    the tokenizer's prefix token (BOS, else EOS).
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class LoglikelihoodResult:
    """Natural-log probabilities of each continuation token, and whether greedy decoding would have given them."""

    token_logprobs: tuple[float, ...]
    is_greedy: bool
    truncated_tokens: int = 0  # tokens cut from the left of the context to fit the window

    @property
    def logprob(self) -> float:
        return float(sum(self.token_logprobs))


@dataclass(frozen=True)
class GenerationRequest:
    """Continue ``prompt`` (token ids). ``stop`` strings end the text and are not part of it. Temperature 0: greedy.

    Sampling keeps the ``top_k`` likeliest tokens (0: all), and of these the smallest set that reaches ``top_p``, as
    transformers does. End-of-text tokens are left out of the first ``min_new_tokens`` tokens.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_new_tokens: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """``tokens`` are the ids that make ``text`` (stop string and EOS removed); ``token_logprobs`` go with them."""

    text: str
    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: str  # "stop" (stop string or EOS) | "length"
    truncated_tokens: int = 0


@dataclass
class Cost:
    """What a model has computed since it was loaded (or since ``reset``).

    ``computed_tokens`` went through the model; of those whose hidden states nobody asks for, only keys and values are
    computed in the last layer (``last_layer.py``), and they count like the others.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)


class LanguageModel(Protocol):
    """What ``openicl`` and ``helm`` need of a model. Answers come in the order of the requests."""

    tokenizer: Any  # a transformers PreTrainedTokenizerBase
    max_seq_len: int
    cost: Cost

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]: ...
