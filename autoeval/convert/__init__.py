"""Megatron checkpoints to Hugging Face model directories, without Megatron and without running what is in a file."""

from __future__ import annotations

from autoeval.convert.conversion import convert
from autoeval.convert.errors import ConversionError
from autoeval.convert.receipt import Receipt, read_receipt
from autoeval.convert.tokenizer import TokenizerSource

__all__ = ["ConversionError", "Receipt", "TokenizerSource", "convert", "read_receipt"]
