"""Compares a converted model with Megatron itself: same tokens through both, in fp32 on the CPU.

The weights reach Megatron's ``GPTModel`` through this room's restricted reader, under Megatron's own names (Megatron's
own loader unpickles freely); so what is compared is the mapping, the configuration and the arithmetic.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.convert.errors import ConversionError
from autoeval.convert.names import canonical
from autoeval.convert.source import Source, open_source

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verification:
    """Largest absolute difference of the fp32 logits; ``same_argmax`` of ``positions`` positions agree."""

    difference: float
    positions: int
    same_argmax: int

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE and self.same_argmax == self.positions


def megatron_is_installed() -> bool:
    return importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.core") is not None


def verify(source: Path, output: Path, *, sequences: int = 2, length: int = 64, seed: int = 0) -> Verification:
    """Compare ``output`` with Megatron on random tokens (kept vocabulary only, the padding rows being cut).

    A model written in bfloat16 or float16 is compared with Megatron's weights rounded the same way. Starts Megatron's
    parallel state in this process. Raises ``ConversionError`` when Megatron cannot build this model on the CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    hf: Any = AutoModelForCausalLM.from_pretrained(str(output), local_files_only=True)
    rounded = hf.dtype
    hf = hf.to(torch.float32).eval()
    opened = open_source(source)
    model = _megatron(opened, rounded)
    vocabulary = hf.config.vocab_size
    length = min(length, hf.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (sequences, length), generator=generator)
    from autoeval.convert import megatron_cpu

    with torch.no_grad():
        ours = hf(tokens).logits
        megatrons = megatron_cpu.logits(model, tokens)[..., :vocabulary]
    return Verification(
        difference=float((ours - megatrons).abs().max()),
        positions=tokens.numel(),
        same_argmax=int((ours.argmax(-1) == megatrons.argmax(-1)).sum()),
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
        for name, parameter in model.named_parameters():
            parameter.copy_(source.tensor(canonical(name)).to(rounded))
    return model.eval()
