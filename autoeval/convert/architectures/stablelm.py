"""StableLM: Llama with LayerNorm, and rotary positions on a part of every head."""

from __future__ import annotations

from typing import Any

from autoeval.convert.architectures.architecture import HEADS_FILL_HIDDEN, PLAIN, Architecture
from autoeval.convert.architectures.llama import ACTIVATIONS, EMBEDDING, LLAMA_ROWS, llama_config
from autoeval.convert.architectures.phi3 import ROTARY_PART
from autoeval.convert.architectures.starcoder2 import LAYER_NORM_BIAS_ROWS
from autoeval.convert.arguments import ModelArguments


def _config(model: ModelArguments) -> dict[str, Any]:
    config = llama_config(model)
    del config["rms_norm_eps"], config["head_dim"]
    config["rope_parameters"]["partial_rotary_factor"] = model.rotary_percent
    return {**config, "layer_norm_eps": model.epsilon, "use_qkv_bias": model.qkv_bias, "hidden_dropout": 0.0}


STABLELM = Architecture(
    name="stablelm",
    class_name="StableLmForCausalLM",
    expresses={
        **PLAIN,
        "position_embedding_type": ("rope",),
        "normalization": ("LayerNorm",),
        "activation": tuple(ACTIVATIONS),
        "linear_bias": (False,),
        "rope_scaling_factor": (None,),
    },
    config=_config,
    embedding=EMBEDDING,
    rows=(*LLAMA_ROWS, *LAYER_NORM_BIAS_ROWS),
    conditions=(HEADS_FILL_HIDDEN, ROTARY_PART),
)
