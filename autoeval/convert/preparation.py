"""What a conversion will be, before a byte of it is written: the mapped tensors, the configuration, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.checkpoints.layout import fingerprint
from autoeval.convert.architectures import choose
from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError, SourceChanged
from autoeval.convert.mapping import Target, config_of, needs_float32, plan
from autoeval.convert.source import Source, open_source
from autoeval.convert.tokenizer import TokenizerSource, write_tokenizer
from autoeval.convert.writer import DTYPES, Planned, size_of


@dataclass(frozen=True)
class Prepared:
    """``layout`` is Megatron's ``--ckpt-format``, ``dtype`` what will be written, never ``auto``, ``config`` Hugging
    Face's."""

    source: Path
    layout: str
    target: Target
    dtype: str
    tensors: list[Planned]
    config: Any


def prepare(source: Path, tokenizer: TokenizerSource | None, dtype: str, directory: Path) -> Prepared:
    """Open ``source`` and put the tokenizer's files into ``directory``. Raises ``ConversionError``; reads no weights
    but a norm's, whose dtype is the checkpoint's."""
    opened = open_source(source)
    model = parse_arguments(opened.args, str(source))
    size = _vocabulary(tokenizer, directory, model)
    target = Target(choose(model, str(source)), model, size, model.tied)
    chosen = _own_dtype(opened, target) if dtype == "auto" else dtype
    config = config_of(target, chosen)
    if tokenizer is not None:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        config.bos_token_id, config.eos_token_id = loaded.bos_token_id, loaded.eos_token_id
    return Prepared(source, opened.layout, target, chosen, plan(opened, target), config)


def planned_bytes(source: Path, dtype: str = "auto") -> int:
    """How many bytes the converted tensors will take, at most: the padded vocabulary is counted, and configuration and
    tokenizer (a few MB) are not. Reads the checkpoint's metadata only. Raises ``ConversionError``."""
    check_dtype(dtype)
    prepared = prepare(Path(source), None, dtype, Path(source))
    return size_of(prepared.tensors, prepared.dtype)


def check_dtype(dtype: str) -> None:
    if dtype not in ("auto", *DTYPES):
        raise ConversionError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")


def fingerprint_of(source: Path) -> str:
    if not source.is_dir():
        raise SourceChanged(f"{source}: there is no such directory")
    try:
        return fingerprint(source)
    except OSError as error:
        raise SourceChanged(f"{source}: files vanish while it is looked at: {error}") from error


def changed(source: Path, before: str) -> bool:
    """Whether the checkpoint is another one than it was, or gone."""
    try:
        return fingerprint(source) != before
    except OSError:
        return True


def _vocabulary(tokenizer: TokenizerSource | None, directory: Path, model: ModelArguments) -> int:
    """How many rows of the vocabulary to keep."""
    if tokenizer is None:
        return model.padded_vocab_size
    size = write_tokenizer(tokenizer, directory, max_length=model.max_positions)
    if size > model.padded_vocab_size:
        raise ConversionError(
            f"the tokenizer has {size} tokens, the model's padded_vocab_size is {model.padded_vocab_size}: "
            "this is not the tokenizer that it was trained with"
        )
    return size


def _own_dtype(source: Source, target: Target) -> str:
    """As stored, or float32 where some converted weights have more digits than the stored ones."""
    stored = str(source.tensor("decoder.final_layernorm.weight").dtype).removeprefix("torch.")
    if stored not in DTYPES:
        raise ConversionError(f"{source.path}: weights are stored as {stored}, expected one of {', '.join(DTYPES)}")
    return "float32" if needs_float32(target) else stored
