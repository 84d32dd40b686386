"""One table per architecture; the saved arguments choose. Adding one is adding a file, a line here and a test."""

from __future__ import annotations

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from autoeval.convert.architectures.glm4_moe import GLM4_MOE
from autoeval.convert.architectures.gpt2 import GPT2
from autoeval.convert.architectures.gpt_neox import GPT_NEOX
from autoeval.convert.architectures.llama import LLAMA
from autoeval.convert.architectures.mistral import MISTRAL
from autoeval.convert.architectures.mixtral import MIXTRAL
from autoeval.convert.architectures.nemotron import NEMOTRON
from autoeval.convert.architectures.phi3 import PHI3
from autoeval.convert.architectures.qwen2 import QWEN2
from autoeval.convert.architectures.qwen3 import QWEN3
from autoeval.convert.architectures.qwen_moe import QWEN2_MOE, QWEN3_MOE
from autoeval.convert.architectures.stablelm import STABLELM
from autoeval.convert.architectures.starcoder2 import STARCODER2
from autoeval.convert.arguments import ModelArguments
from autoeval.convert.errors import ConversionError

__all__ = ["ARCHITECTURES", "Architecture", "Row", "choose"]

# Where two can express the same arguments, the first is taken.
ARCHITECTURES: tuple[Architecture, ...] = (
    GPT2, LLAMA, QWEN2, QWEN3, MISTRAL, PHI3, NEMOTRON, STARCODER2, GPT_NEOX, STABLELM,
    MIXTRAL, QWEN3_MOE, QWEN2_MOE, GLM4_MOE, DEEPSEEK_V3, DEEPSEEK_V2,
)  # fmt: skip


def choose(model: ModelArguments, where: str) -> Architecture:
    """The architecture that computes what these arguments mean; ``ConversionError`` names what none can express."""
    complaints = {architecture.name: list(architecture.complaints(model)) for architecture in ARCHITECTURES}
    fewest = min(map(len, complaints.values()))
    if fewest:
        nearest = [(name, missing) for name, missing in complaints.items() if len(missing) == fewest]
        raise ConversionError(
            f"{where}: no architecture here expresses how this was trained: "
            + "; ".join(f"{name} has no place for {', '.join(missing)}" for name, missing in nearest)
        )
    return next(architecture for architecture in ARCHITECTURES if not complaints[architecture.name])
