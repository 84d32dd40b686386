"""One checkpoint to a Hugging Face model directory: read, map, write, check, and only then give it its name."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoeval.checkpoints.layout import fingerprint
from autoeval.convert.architectures import ARCHITECTURES, choose
from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.mapping import Target, config_of, mapping_digest, plan
from autoeval.convert.receipt import Receipt, read_receipt, write_receipt
from autoeval.convert.source import Source, open_source
from autoeval.convert.tokenizer import TokenizerSource, write_tokenizer
from autoeval.convert.writer import Planned, Written, reread, write_model
from recorder.files import sync_directory

if TYPE_CHECKING:
    pass

DTYPES = ("float32", "bfloat16", "float16")


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
        target = Target(architecture, model, size, model.tied)
        chosen = _dtype(opened, dtype)
        _write_config(temporary, target, chosen, tokenizer is not None)
        written = _checked_write(temporary, output, plan(opened, target), chosen, progress)
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
    mappings = {mapping_digest(a) for a in ARCHITECTURES if a.name == receipt.architecture}
    return same and receipt.mapping in mappings and dtype == receipt.requested_dtype


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


def _write_config(directory: Path, target: Target, dtype: str, has_tokenizer: bool) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    config = config_of(target, dtype)
    if has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, do_sample=False
    ).save_pretrained(directory)


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
    target: Target,
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
        mapping=mapping_digest(target.architecture),
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
