"""Mistral: Llama with a sliding window. Without a window the two are the same, and ``llama`` is chosen."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Condition
from autoeval.convert.architectures.llama import EMBEDDING, LLAMA_EXPRESSES, LLAMA_ROWS, llama_config
from autoeval.convert.arguments import ModelArguments


def _config(model: ModelArguments) -> dict[str, Any]:
    return {**llama_config(model), "sliding_window": model.window}


MISTRAL = Architecture(
    name="mistral",
    class_name="MistralForCausalLM",
    expresses={field: values for field, values in LLAMA_EXPRESSES.items() if field != "window"},
    config=_config,
    embedding=EMBEDDING,
    rows=LLAMA_ROWS,
    conditions=(Condition("window_size=None", lambda model: model.window is not None, "a sliding window"),),
)
