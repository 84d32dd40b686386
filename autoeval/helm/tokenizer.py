"""HELM's view of a registered model's tokenizer: the object that the model has already loaded.

This module imports HELM, which makes the class from its name (``registration.py``).
"""

from __future__ import annotations

from helm.common.cache_backend_config import CacheConfig
from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer, WrappedPreTrainedTokenizer

from autoeval.helm.runner import engine_of


class EngineTokenizer(HuggingFaceTokenizer):
    """``HuggingFaceTokenizer`` without its class-level table: loading it again costs more than a small run's metrics."""

    def __init__(self, cache_config: CacheConfig, tokenizer_name: str) -> None:
        super().__init__(cache_config=cache_config, tokenizer_name=tokenizer_name)
        self._wrapped = WrappedPreTrainedTokenizer(engine_of(tokenizer_name).tokenizer)

    def get_wrapped_tokenizer(self) -> WrappedPreTrainedTokenizer:
        return self._wrapped
