"""The held-out loss of a converted model, set beside the loss that the training run itself reported.

A wrong conversion is near chance (ln of the vocabulary) whatever the text. The text is normally not the run's own
validation set, so the difference is recorded for a person to judge, and only a loss that is nearer to chance than to
what the run reported fails. Fine errors are what ``--verify`` is for.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoeval.convert.errors import ConversionError

_BATCH_LOGITS = 64 * 1024**2  # elements of logits computed at once


@dataclass(frozen=True)
class ExpectedLoss:
    """``value``: the run's validation loss at this checkpoint, nats per token. ``text``: UTF-8 text, or a ``.npy`` file
    of token ids. ``tolerance``: how many nats above ``value`` are accepted; None: half the way from it to chance."""

    value: float
    text: Path
    tolerance: float | None = None
    max_tokens: int = 16384

    def answered_by(self, found: dict[str, Any] | None) -> bool:
        """Whether a receipt's ``loss`` is what this would find again (its model has not changed)."""
        asked = {
            "expected": self.value, "text": str(self.text), "tolerance": self.tolerance, "max_tokens": self.max_tokens,
        }  # fmt: skip
        try:
            same_text = found is not None and found["text_sha256"] == _sha256(self.text)
        except OSError:
            return False
        return found is not None and same_text and all(found[key] == value for key, value in asked.items())


@dataclass(frozen=True)
class LossCheck:
    """Losses in nats per token over ``tokens`` predicted tokens; ``difference`` is found minus expected."""

    text: str
    text_sha256: str
    tokens: int
    loss: float
    expected: float
    difference: float
    limit: float
    tolerance: float | None
    max_tokens: int

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def check_loss(directory: Path, expected: ExpectedLoss, *, device: str = "auto") -> LossCheck:
    """Measure the model in ``directory`` on the expected loss's text. Raises ``ConversionError`` for a bad text."""
    import json

    loss, tokens = held_out_loss(directory, expected.text, max_tokens=expected.max_tokens, device=device)
    loss = loss if math.isfinite(loss) else sys.float_info.max  # a receipt is JSON, which has no NaN
    chance = math.log(json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    limit = max(chance - expected.value, 0.0) / 2 if expected.tolerance is None else expected.tolerance
    return LossCheck(
        text=str(expected.text),
        text_sha256=_sha256(expected.text),
        tokens=tokens,
        loss=loss,
        expected=expected.value,
        difference=loss - expected.value,
        limit=limit,
        tolerance=expected.tolerance,
        max_tokens=expected.max_tokens,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def held_out_loss(
    model: Path | Any, text: Path, *, tokenizer: Any = None, max_tokens: int = 16384, device: str = "auto"
) -> tuple[float, int]:
    """Mean cross-entropy in nats per token (NaN for a model that answers so), and how many tokens were predicted.

    ``model`` is a converted directory, or a loaded model with its ``tokenizer``. The first ``max_tokens`` tokens count,
    in windows as Megatron cuts its sequences: each as long as the model allows, none overlapping, no token added; the
    first token of a text is not predicted. ``device`` ``auto`` is a GPU where there is one. Raises ``ConversionError`` naming a text that cannot be used.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if isinstance(model, Path):
        directory, model = model, None  # a directory's path from here on
        if text.suffix != ".npy" and tokenizer is None:
            if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
                raise ConversionError(f"{directory}: no tokenizer, so {text} cannot be read; give a .npy file of ids")
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        model = loaded.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    device = str(model.device)
    ids = torch.tensor(_tokens(text, tokenizer, model.config.vocab_size)[: max_tokens + 1], device=device)
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for window in _windows(ids, model.config):
            logits = model(window[:, :-1]).logits.float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum")
            )
            count += window[:, 1:].numel()
    return total / count, count


def _tokens(path: Path, tokenizer: Any, vocabulary: int) -> list[int]:
    import numpy

    try:
        if path.suffix == ".npy":
            array = numpy.load(path, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ConversionError(f"{path}: holds {array.dtype} {array.shape}, expected one row of token ids")
            ids = [int(number) for number in array]
        else:
            ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False).input_ids
    except (OSError, ValueError) as error:
        raise error if isinstance(error, ConversionError) else ConversionError(f"{path}: {error}") from error
    if len(ids) < 2:
        raise ConversionError(f"{path}: {len(ids)} tokens, expected at least 2")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise ConversionError(f"{path}: token ids from {min(ids)} to {max(ids)}, the model has {vocabulary}")
    return ids


def _windows(ids: Any, config: Any) -> Iterator[Any]:
    """[batch, length + 1] pieces in which every token but the first is predicted once."""
    length = config.max_position_embeddings
    whole = (len(ids) - 1) // length
    batch = max(1, _BATCH_LOGITS // (length * config.vocab_size))
    pieces = [ids[i * length : i * length + length + 1] for i in range(whole)]
    for start in range(0, whole, batch):
        import torch

        yield torch.stack(pieces[start : start + batch])
    if len(ids) - whole * length > 1:
        yield ids[whole * length :].unsqueeze(0)
