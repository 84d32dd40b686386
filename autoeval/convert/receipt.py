"""``receipt.json``: what a converted model was made from and what was checked. Without it a model is not trusted."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoeval.convert.mapping import mapping_digest
from autoeval.convert.preparation import Prepared
from autoeval.convert.tokenizer import TokenizerSource
from autoeval.convert.writer import checksum
from recorder.files import write_json

FORMAT = "autoeval-receipt/1"
NAME = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """Sizes count bytes, times are seconds (``created_at``: Unix time).

    ``vocab_size`` is what was kept of ``padded_vocab_size``: rows beyond the tokenizer are padding that the softmax
    would otherwise give probability to, so they are cut. ``mapping`` is a hash of the table and of this room's version.
    ``checksum`` is over all tensors' names and bytes, however they are sharded. ``loss`` (``LossCheck``) and
    ``verified`` (``Verification``) are what those checks found, None when they were not asked for.
    """

    source: str
    fingerprint: str
    iteration: int | None
    layout: str
    architecture: str
    mapping: str
    requested_dtype: str
    dtype: str
    tokenizer: str | None
    tokenizer_fingerprint: str | None
    vocab_size: int
    padded_vocab_size: int
    parameters: int
    checksum: str
    files: dict[str, int]
    seconds: float
    created_at: float
    loss: dict[str, Any] | None = None
    verified: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def receipt_of(
    prepared: Prepared,
    digests: dict[str, str],
    fingerprint: str,
    requested_dtype: str,
    tokenizer: TokenizerSource | None,
    started: float,
) -> Receipt:
    """Of a conversion whose tensors have these digests; ``fingerprint`` is its source's, no file is in it yet."""
    source, target = prepared.source, prepared.target
    number = re.search(r"iter_(\d+)", source.name)  # a pinned checkpoint has more in its name
    return Receipt(
        source=str(source.resolve()),
        fingerprint=fingerprint,
        iteration=int(number.group(1)) if number else None,
        layout=prepared.layout,
        architecture=target.architecture.name,
        mapping=mapping_digest(target.architecture),
        requested_dtype=requested_dtype,
        dtype=prepared.dtype,
        tokenizer=tokenizer.kind if tokenizer else None,
        tokenizer_fingerprint=tokenizer.fingerprint() if tokenizer else None,
        vocab_size=target.vocab_size,
        padded_vocab_size=target.model.padded_vocab_size,
        parameters=sum(math.prod(tensor.shape) for tensor in prepared.tensors),
        checksum=checksum(digests),
        files={},
        seconds=round(time.time() - started, 3),
        created_at=round(time.time(), 3),
    )


def write_receipt(output: Path, receipt: Receipt) -> None:
    write_json(output / NAME, receipt.to_json())


def read_receipt(output: Path) -> Receipt | None:
    """The receipt of a converted model whose files are all there with their sizes; otherwise None."""
    try:
        content = json.loads((output / NAME).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            return None
        receipt = Receipt(**content)
        whole = all((output / name).stat().st_size == size for name, size in receipt.files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return receipt if whole else None
