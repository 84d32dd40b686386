"""A checkpoint straight into a transformers model, for a task in this process: nothing is written."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from autoeval.convert.errors import ConversionError, SourceChanged
from autoeval.convert.preparation import Prepared, changed, check_dtype, fingerprint_of, prepare
from autoeval.convert.receipt import Receipt, receipt_of
from autoeval.convert.tokenizer import TokenizerSource
from autoeval.convert.writer import Progress, chunks_of, raw, size_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loaded:
    """``receipt`` names no files; its checksum is that of the model that ``convert`` would have written."""

    model: Any
    tokenizer: Any | None
    receipt: Receipt


def load_direct(
    source: Path,
    *,
    tokenizer: TokenizerSource | None,
    dtype: str = "auto",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Loaded:
    """The model of the iteration directory ``source``, in evaluation mode on ``device``; memory holds it once.

    Its tensors are those that ``convert`` writes, put into place by transformers' own loader (which also fuses the
    experts of a mixture as its module wants them). Raises ``ConversionError`` as ``convert`` does.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer

    check_dtype(dtype)
    source, started = Path(source), time.time()
    before = fingerprint_of(source)
    with tempfile.TemporaryDirectory(prefix="autoeval-") as directory:
        prepared = prepare(source, tokenizer, dtype, Path(directory))
        loaded = (
            AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            if tokenizer
            else None
        )
    weights, digests = _read(prepared, progress)
    if changed(source, before):
        raise SourceChanged(f"{source}: changed while it was read")
    kind = getattr(transformers, prepared.target.architecture.class_name)
    model, report = kind.from_pretrained(
        None,
        config=prepared.config,
        state_dict=weights,
        dtype=getattr(torch, prepared.dtype),
        output_loading_info=True,
    )
    if problems := {key: value for key, value in report.items() if value}:
        raise ConversionError(f"{source}: transformers could not place every tensor: {problems}")
    receipt = receipt_of(prepared, digests, before, dtype, tokenizer, started)
    return Loaded(model.to(device).eval(), loaded, receipt)


def _read(prepared: Prepared, progress: Progress | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    import torch

    weights: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    done, total = 0, size_of(prepared.tensors, prepared.dtype)
    for planned in prepared.tensors:
        tensor = torch.empty(planned.shape, dtype=getattr(torch, planned.dtype or prepared.dtype))
        digest, start, flat = xxhash.xxh3_128(), 0, tensor.view(-1)
        for chunk in chunks_of(planned, prepared.dtype):
            content = raw(chunk)
            digest.update(content)
            flat[start : start + chunk.numel()] = chunk.view(-1)
            start, done = start + chunk.numel(), done + len(content)
            if progress:
                progress(done, total)
        weights[planned.name], digests[planned.name] = tensor, digest.hexdigest()
    return weights, digests
