"""What a conversion will be, before a byte of it is written: the mapped tensors, the configuration, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.checkpoints.layout import fingerprint
from autoeval.convert.architectures import choose
from autoeval.convert.arguments import parse_arguments
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
    placed = None if tokenizer is None else _place(tokenizer, directory, model.max_positions)
    size = model.padded_vocab_size if placed is None else placed.size
    if size > model.padded_vocab_size:
        raise ConversionError(
            f"the tokenizer has {size} tokens, the model's padded_vocab_size is {model.padded_vocab_size}: "
            "this is not the tokenizer that it was trained with"
        )
    target = Target(choose(model, str(source)), model, size, model.tied)
    chosen = _own_dtype(opened, target) if dtype == "auto" else dtype
    config = config_of(target, chosen)
    if placed is not None:
        config.bos_token_id, config.eos_token_id = placed.bos, placed.eos
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


@dataclass(frozen=True)
class _Placed:
    """A tokenizer as it was written: its ``files`` by name, its size, the ids of its ends of text."""

    files: dict[str, bytes]
    size: int
    bos: int | None
    eos: int | None


_last_placed: dict[tuple[str, int], _Placed] = {}  # one at most: the next checkpoint of a run has the same


def _place(source: TokenizerSource, directory: Path, max_length: int) -> _Placed:
    """Put the tokenizer's files into ``directory``. Building and loading one takes longer than converting a small model,
    so for the same content it is done once in a process."""
    key = (source.fingerprint(), max_length)
    known = _last_placed.get(key)
    if known is not None:
        for name, content in known.files.items():
            (directory / name).write_bytes(content)
        return known
    from transformers import AutoTokenizer

    others = set(directory.iterdir())
    size = write_tokenizer(source, directory, max_length=max_length)
    loaded = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path not in others}
    placed = _Placed(files, size, loaded.bos_token_id, loaded.eos_token_id)
    _last_placed.clear()
    _last_placed[key] = placed
    return placed


def _own_dtype(source: Source, target: Target) -> str:
    """As stored, or float32 where some converted weights have more digits than the stored ones."""
    stored = str(source.tensor("decoder.final_layernorm.weight").dtype).removeprefix("torch.")
    if stored not in DTYPES:
        raise ConversionError(f"{source.path}: weights are stored as {stored}, expected one of {', '.join(DTYPES)}")
    return "float32" if needs_float32(target) else stored
