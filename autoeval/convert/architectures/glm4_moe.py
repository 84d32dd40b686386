"""GLM-4.5: the experts of DeepSeek-V3 behind grouped-query attention, with or without norms and biases in it."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import Architecture, Row
from autoeval.convert.architectures.deepseek import SIGMOID_CONDITIONS, SIGMOID_ROWS, sigmoid_config
from autoeval.convert.architectures.llama import ATTENTION_ROWS, BLOCK_ROWS, EMBEDDING, LLAMA_EXPRESSES, llama_config
from autoeval.convert.architectures.phi3 import ROTARY_PART
from autoeval.convert.architectures.qwen3 import QK_NORM_ROWS
from autoeval.convert.arguments import ModelArguments


def _config(model: ModelArguments) -> dict[str, Any]:
    assert model.experts
    config = llama_config(model)
    config["rope_parameters"]["partial_rotary_factor"] = model.rotary_percent
    return {
        **config,
        **sigmoid_config(model.experts),
        "attention_bias": model.qkv_bias,
        "use_qk_norm": model.qk_layernorm,
    }


def _with_qk_norm(model: ModelArguments, _layer: int) -> bool:
    return model.qk_layernorm


GLM4_MOE = Architecture(
    name="glm4_moe",
    class_name="Glm4MoeForCausalLM",
    expresses={
        **{field: values for field, values in LLAMA_EXPRESSES.items() if field not in ("experts", "rotary_percent")},
        "qkv_bias": (False, True),
        "qk_layernorm": (False, True),
        "rope_scaling_factor": (None,),
        "experts.score_function": ("sigmoid",),
        "experts.shared_gate": (False,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(
        *BLOCK_ROWS,
        *ATTENTION_ROWS,
        *(Row(row.target, row.source, row.transform, _with_qk_norm) for row in QK_NORM_ROWS),
        *SIGMOID_ROWS,
    ),
    conditions=(*SIGMOID_CONDITIONS, ROTARY_PART),
)
