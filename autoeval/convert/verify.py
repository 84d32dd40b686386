"""Compares a converted model with Megatron itself: same tokens through both, in fp32 on the CPU.

The weights reach Megatron's ``GPTModel`` through this room's restricted reader, under Megatron's own names (Megatron's
own loader unpickles freely); so what is compared is the mapping, the configuration and the arithmetic.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoeval.convert.errors import ConversionError
from autoeval.convert.names import canonical
from autoeval.convert.receipt import read_receipt
from autoeval.convert.source import Source, open_source
from autoeval.convert.writer import checksum as digest_of
from autoeval.convert.writer import file_digests

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verification:
    """Largest absolute difference of the fp32 logits; ``same_argmax`` of ``positions`` positions agree.

    ``intact`` says whether every byte of the written tensors has the receipt's checksum.
    """

    difference: float
    positions: int
    same_argmax: int
    intact: bool
    megatron_version: str

    @property
    def passed(self) -> bool:
        return self.intact and self.difference <= TOLERANCE and self.same_argmax == self.positions

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "argmax_equal": self.same_argmax == self.positions, "passed": self.passed}

    def __str__(self) -> str:
        agree = (
            f"largest logit difference {self.difference:.2e} (at most {TOLERANCE:g}), argmax equal at "
            f"{self.same_argmax} of {self.positions} positions, megatron-core {self.megatron_version}"
        )
        words = "verified against Megatron" if self.passed else "verification against Megatron FAILED"
        return f"{words}: {agree}" + ("" if self.intact else "; the tensors read back differ from the checksum")


def megatron_is_installed() -> bool:
    return importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.core") is not None


def verify(
    source: Path, output: Path, checksum: str | None = None, *, sequences: int = 2, length: int = 64, seed: int = 0
) -> Verification:
    """Compare ``output`` with Megatron on random tokens (kept vocabulary only, the padding rows being cut), and every
    byte of its tensors with ``checksum`` (by default its receipt's).

    A model written in bfloat16 or float16 is compared with Megatron's weights rounded the same way. Starts Megatron's
    parallel state in this process. Raises ``ConversionError`` when Megatron cannot build this model on the CPU.
    """
    if not megatron_is_installed():
        raise ConversionError("not verified: megatron-core, which this compares with, is not installed")
    if checksum is None:
        receipt = read_receipt(output)
        checksum = receipt.checksum if receipt else ""
    import torch
    from transformers import AutoModelForCausalLM

    hf: Any = AutoModelForCausalLM.from_pretrained(str(output), local_files_only=True, trust_remote_code=False)
    rounded = hf.dtype
    hf = hf.to(torch.float32).eval()
    opened = open_source(source)
    model = _megatron(opened, rounded)
    vocabulary = hf.config.vocab_size
    length = min(length, hf.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (sequences, length), generator=generator)
    from megatron import core as megatron_core

    from autoeval.convert import megatron_cpu

    with torch.no_grad():
        ours = hf(tokens).logits
        megatrons = megatron_cpu.logits(model, tokens)[..., :vocabulary]
    worst = torch.finfo(torch.float32).max  # also what NaN counts as: a receipt is JSON, which has none
    difference = (ours - megatrons).abs().max().nan_to_num(nan=worst, posinf=worst)
    return Verification(
        difference=float(difference),
        positions=tokens.numel(),
        same_argmax=int((ours.argmax(-1) == megatrons.argmax(-1)).sum()),
        intact=digest_of(file_digests(output)) == checksum,
        megatron_version=megatron_core.__version__,
    )


def _megatron(source: Source, rounded: Any) -> Any:
    import torch

    from autoeval.convert import megatron_cpu

    try:
        megatron_cpu.initialize()
        model = megatron_cpu.build_gpt(source.args)
    except Exception as error:  # Megatron raises anything from AssertionError to TypeError
        raise ConversionError(
            f"Megatron cannot build this model on the CPU: {type(error).__name__}: {error}"
        ) from error
    with torch.no_grad():
        for name, weight in megatron_cpu.weights(model):
            stored = source.tensor(canonical(name))
            # The experts' bias decides between near scores and is kept as it was stored.
            weight.copy_(stored if name.endswith("expert_bias") else stored.to(rounded))
    return model.eval()
