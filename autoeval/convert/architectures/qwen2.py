"""Qwen2 and 2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture
from autoeval.convert.architectures.llama import EMBEDDING, LLAMA_EXPRESSES, LLAMA_ROWS, llama_config

QWEN2 = Architecture(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    expresses={**LLAMA_EXPRESSES, "qkv_bias": (True,)},
    config=llama_config,
    embedding=EMBEDDING,
    rows=LLAMA_ROWS,
)
