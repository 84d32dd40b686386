"""Megatron checkpoints to Hugging Face model directories, without Megatron and without running what is in a file."""

from __future__ import annotations

from autoeval.convert.conversion import check, convert
from autoeval.convert.direct import Loaded, load_direct
from autoeval.convert.errors import BadWeights, ConversionError, OutputError, Quarantined, SourceChanged
from autoeval.convert.loss import ExpectedLoss, held_out_loss
from autoeval.convert.preparation import planned_bytes
from autoeval.convert.receipt import Receipt, read_receipt
from autoeval.convert.tokenizer import TokenizerSource

__all__ = [
    "BadWeights",
    "ConversionError",
    "ExpectedLoss",
    "Loaded",
    "OutputError",
    "Quarantined",
    "Receipt",
    "SourceChanged",
    "TokenizerSource",
    "check",
    "convert",
    "held_out_loss",
    "load_direct",
    "planned_bytes",
    "read_receipt",
]
