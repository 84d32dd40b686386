"""Chat models: what they are asked goes through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import LoglikelihoodRequest, LoglikelihoodResult


class ChatTokenizer:
    """A tokenizer that makes a user's turn of a text (or takes turns) and opens the assistant's answer after it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | Sequence[Mapping[str, str]], **_options: Any) -> dict[str, list[int]]:
        turns = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(turn) for turn in text]
        ids = self._tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        return {"input_ids": list(ids)}


class HuggingFaceChatModel(HuggingFaceModel):
    """``HuggingFaceModel`` whose prompts are turns of a conversation. It generates; it does not rank.

    Raises ``ValueError`` for a tokenizer without a chat template.
    """

    def __init__(self, path: Path | str, **options: Any) -> None:
        super().__init__(path, **options)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"{path}: its tokenizer has no chat template; use HuggingFaceBaseModel (--hf-type base)")
        self.tokenizer = ChatTokenizer(self.tokenizer)

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        """Raises ``ValueError``: a prompt inside a chat template has no continuation that could be ranked."""
        raise ValueError(f"{self.path}: a chat model only generates; use a _gen dataset, or --hf-type base")
