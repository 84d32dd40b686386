"""What an architecture is: which arguments it can express, its Hugging Face configuration, and a table of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoeval.convert.arguments import ModelArguments
from autoeval.convert.transforms import Transform


@dataclass(frozen=True)
class Row:
    """``target`` (Hugging Face) is made of ``source`` (canonical Megatron name). ``{i}`` stands for the layer."""

    target: str
    source: str
    transform: Transform


@dataclass(frozen=True)
class Architecture:
    """``expresses`` maps a field of ``ModelArguments`` to the values that this architecture can take."""

    name: str  # Hugging Face's model_type
    class_name: str
    expresses: Mapping[str, tuple[Any, ...]]
    config: Callable[[ModelArguments], dict[str, Any]]
    rows: tuple[Row, ...]
    # Rows along the vocabulary, which are cut to the tokenizer's size.
    embedding: str
    output: Row = Row("lm_head.weight", "output_layer.weight", lambda tensor, _model: tensor)
