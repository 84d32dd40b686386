"""One checkpoint to a Hugging Face model directory: read, map, write, check, and only then give it its name."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints.layout import fingerprint
from autoeval.convert import transforms
from autoeval.convert.architectures import Architecture, Row, choose
from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.receipt import Receipt, read_receipt, write_receipt
from autoeval.convert.source import Source, open_source
from autoeval.convert.tokenizer import TokenizerSource, write_tokenizer
from autoeval.convert.writer import Planned, Written, reread, write_model
from recorder.files import sync_directory

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16")
# Raised whenever a change here can alter the converted weights; a receipt of another version is not reused.
VERSION = 1


@dataclass(frozen=True)
class _Target:
    """The model to be written. ``vocab_size`` rows of the embeddings are kept."""

    architecture: Architecture
    model: ModelArguments
    vocab_size: int
    tied: bool


def convert(
    source: Path,
    output: Path,
    *,
    tokenizer: TokenizerSource | None,
    dtype: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Receipt:
    """Convert the iteration directory ``source`` to ``output``; a conversion made before is reused by its receipt.

    ``dtype`` is ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``. Without a tokenizer the padded
    vocabulary is kept. ``progress`` is called with bytes written and bytes in all. Raises ``ConversionError``; then
    ``output`` is as it was, or a conversion that failed its checks stands at ``<output>.quarantined``.
    """
    if dtype not in ("auto", *DTYPES):
        raise ConversionError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    source, output = Path(source), Path(output)
    started = time.time()
    before = _fingerprint(source)
    tokenizer_print = tokenizer.fingerprint() if tokenizer else None
    done = read_receipt(output)
    if done and _reusable(done, before, tokenizer_print, dtype):
        return done
    if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise ConversionError(f"{output}: exists and is not a model directory; it is left alone")
    opened = open_source(source)
    model = parse_arguments(opened.args, str(source))
    architecture = choose(model, str(source))
    temporary = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        size = _tokenizer_size(tokenizer, temporary, model)
        target = _Target(architecture, model, size, model.tied)
        chosen = _dtype(opened, dtype)
        _write_config(temporary, target, chosen, tokenizer is not None)
        planned = _plan(opened, target)
        written = _checked_write(temporary, output, planned, chosen, progress)
        if _fingerprint(source) != before:
            raise ConversionError(f"{source}: changed while it was read; the conversion is discarded")
        receipt = _receipt(
            source, before, target, (dtype, chosen), written, tokenizer, tokenizer_print, temporary, started
        )
        write_receipt(temporary, receipt)
        _publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return receipt


def _reusable(receipt: Receipt, source: str, tokenizer: str | None, dtype: str) -> bool:
    same = receipt.fingerprint == source and receipt.tokenizer_fingerprint == tokenizer
    mappings = {_mapping(a) for a in _architectures() if a.name == receipt.architecture}
    return same and receipt.mapping in mappings and dtype == receipt.requested_dtype


def _architectures() -> tuple[Architecture, ...]:
    from autoeval.convert.architectures import GPT2, LLAMA, QWEN2, QWEN3

    return (GPT2, LLAMA, QWEN2, QWEN3)


def _mapping(architecture: Architecture) -> str:
    """Hash of the table, of the transforms' source and of this room's version."""
    rows = [f"{row.target} {row.source} {row.transform.__name__}" for row in architecture.rows]
    text = "\n".join([str(VERSION), architecture.name, *rows, inspect.getsource(transforms)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(source: Path) -> str:
    try:
        return fingerprint(source)
    except OSError as error:
        raise ConversionError(f"{source}: files vanish while it is looked at: {error}") from error


def _tokenizer_size(tokenizer: TokenizerSource | None, directory: Path, model: ModelArguments) -> int:
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


def _dtype(source: Source, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    stored = str(source.tensor("decoder.final_layernorm.weight").dtype).removeprefix("torch.")
    if stored not in DTYPES:
        raise ConversionError(f"{source.path}: weights are stored as {stored}, expected one of {', '.join(DTYPES)}")
    return stored


def _config(target: _Target, dtype: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        target.architecture.name,
        **target.architecture.config(target.model),
        vocab_size=target.vocab_size,
        tie_word_embeddings=target.tied,
        use_cache=True,
        architectures=[target.architecture.class_name],
        dtype=dtype,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _write_config(directory: Path, target: _Target, dtype: str, has_tokenizer: bool) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    config = _config(target, dtype)
    if has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, do_sample=False
    ).save_pretrained(directory)


def _plan(source: Source, target: _Target) -> list[Planned]:
    """One entry per tensor to write. Every weight of the checkpoint must be used: one left over has a meaning that
    the mapping does not know."""
    rows = list(_rows(target))
    used = {row.source for row in rows}
    if left := source.names() - used:
        raise ConversionError(
            f"{source.path}: {target.architecture.name} has no place for {', '.join(sorted(left)[:3])}"
            + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        )
    if missing := used - source.names():
        raise ConversionError(f"{source.path}: the checkpoint has no {', '.join(sorted(missing)[:3])}")
    expected = _shapes(target)
    if set(expected) != {row.target for row in rows}:
        differ = sorted(set(expected) ^ {row.target for row in rows})
        raise ConversionError(f"{source.path}: the mapping and transformers differ in {', '.join(differ[:3])}")
    return [Planned(row.target, expected[row.target], _reader(source, row, target)) for row in rows]


def _shapes(target: _Target) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(target, "float32"))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if target.tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def _rows(target: _Target) -> list[Row]:
    rows: list[Row] = []
    for row in target.architecture.rows:
        layers = range(target.model.num_layers) if "{i}" in row.target else range(1)
        for i in layers:
            rows.append(Row(row.target.replace("{i}", str(i)), row.source.replace("{i}", str(i)), row.transform))
    if not target.tied:
        rows.append(target.architecture.output)
    return rows


def _reader(source: Source, row: Row, target: _Target) -> Callable[[], Tensor]:
    vocabulary = row.target in (target.architecture.embedding, target.architecture.output.target)

    def read() -> Tensor:
        tensor = row.transform(source.tensor(row.source), target.model)
        if vocabulary and tensor.shape[0] != target.model.padded_vocab_size:
            raise ConversionError(
                f"{source.path}: {row.source} has {tensor.shape[0]} rows, padded_vocab_size is "
                f"{target.model.padded_vocab_size}"
            )
        return tensor[: target.vocab_size] if vocabulary else tensor

    return read


def _checked_write(
    temporary: Path, output: Path, planned: list[Planned], dtype: str, progress: Callable[[int, int], None] | None
) -> Written:
    try:
        written = write_model(temporary, planned, dtype, progress=progress)
        reread(temporary, written)
    except ConversionError as error:
        quarantine = output.with_name(f"{output.name}.quarantined")
        shutil.rmtree(quarantine, ignore_errors=True)
        temporary.replace(quarantine)
        raise ConversionError(f"{error}; what was made of it stands at {quarantine}") from error
    return written


def _receipt(
    source: Path,
    source_print: str,
    target: _Target,
    dtype: tuple[str, str],
    written: Written,
    tokenizer: TokenizerSource | None,
    tokenizer_print: str | None,
    directory: Path,
    started: float,
) -> Receipt:
    number = re.search(r"iter_(\d+)", source.name)  # a pinned checkpoint has more in its name
    return Receipt(
        source=str(source.resolve()),
        fingerprint=source_print,
        iteration=int(number.group(1)) if number else None,
        layout="torch_dist" if (source / "metadata.json").is_file() else "torch",
        architecture=target.architecture.name,
        mapping=_mapping(target.architecture),
        requested_dtype=dtype[0],
        dtype=dtype[1],
        tokenizer=tokenizer.kind if tokenizer else None,
        tokenizer_fingerprint=tokenizer_print,
        vocab_size=target.vocab_size,
        padded_vocab_size=target.model.padded_vocab_size,
        parameters=written.parameters,
        checksum=written.checksum,
        files={path.name: path.stat().st_size for path in sorted(directory.iterdir())},
        seconds=round(time.time() - started, 3),
        created_at=round(time.time(), 3),
    )


def _publish(temporary: Path, output: Path) -> None:
    """Give the finished directory its name; an older conversion there is put aside first, then removed."""
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.replace(old)
    temporary.replace(output)
    sync_directory(output.parent)
    shutil.rmtree(old, ignore_errors=True)
