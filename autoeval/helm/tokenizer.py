"""HELM's view of a registered model's tokenizer: the object that the model has already loaded.

This module imports HELM, which makes the class from its name (``registration.py``).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from helm.common.cache_backend_config import CacheConfig
from helm.common.tokenization_request import TokenizationRequest, TokenizationRequestResult, TokenizationToken
from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer, WrappedPreTrainedTokenizer

from autoeval.helm.runner import engine_of
from autoeval.helm.tokens import TEXT, table_of

# HELM counts a prompt's tokens by a list of these. They cannot be changed, so each is made once: at most a vocabulary.
_TOKENS: dict[Any, TokenizationToken] = {}


class EngineTokenizer(HuggingFaceTokenizer):
    """``HuggingFaceTokenizer`` without its class-level table (loading a tokenizer again costs more than a small run's
    metrics), and with what was tokenized before, for an earlier checkpoint too."""

    def __init__(self, cache_config: CacheConfig, tokenizer_name: str) -> None:
        super().__init__(cache_config=cache_config, tokenizer_name=tokenizer_name)
        tokenizer = engine_of(tokenizer_name).tokenizer
        self._wrapped = WrappedPreTrainedTokenizer(tokenizer)
        self._table = table_of(tokenizer)
        # Where tokens are asked for as strings, HELM makes them in another way when the name has "gpt" in it.
        self._pieces: Hashable = ("pieces", "gpt" in tokenizer_name)

    def get_wrapped_tokenizer(self) -> WrappedPreTrainedTokenizer:
        return self._wrapped

    def tokenize(self, request: TokenizationRequest) -> TokenizationRequestResult:
        if request.truncation:
            return super().tokenize(request)
        kind = TEXT if request.encode else self._pieces
        known = self._table.get(kind, request.text)
        if known is None:
            result = super().tokenize(request)
            self._table.keep(kind, request.text, [token.value for token in result.tokens])
            return result
        tokens = [_TOKENS.get(token) or _token(token) for token in known]
        return TokenizationRequestResult(success=True, cached=True, text=request.text, tokens=tokens, request_time=0.0)


def _token(value: Any) -> TokenizationToken:
    token = _TOKENS[value] = TokenizationToken(value)
    return token
