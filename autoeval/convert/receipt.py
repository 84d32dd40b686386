"""``receipt.json``: what a converted model was made from and what was checked. Without it a model is not trusted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recorder.files import write_json

FORMAT = "autoeval-receipt/1"
NAME = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """Sizes count bytes, times are seconds (``created_at``: Unix time).

    ``vocab_size`` is what was kept of ``padded_vocab_size``: rows beyond the tokenizer are padding that the softmax
    would otherwise give probability to, so they are cut. ``mapping`` is a hash of the table and of this room's version.
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

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


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
