"""``run_config.yaml`` of Megatron-Bridge: the model's configuration where Megatron-LM would have saved its arguments.

Its ``model`` section holds the fields of megatron-core's ``TransformerConfig`` and of Bridge's model provider. Python
objects in it are plain mappings that name what to import under ``_target_``: the names are read, nothing is imported.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from autoeval.convert.errors import ConversionError
from autoeval.convert.safe_load import inside
from recorder.untrusted import parse_yaml

NAME = "run_config.yaml"
_MAX_BYTES = 16 * 2**20

# TransformerConfig's and the provider's names that Megatron-LM's arguments spell otherwise.
_RENAMED = {
    "num_moe_experts": "num_experts",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "rope_scaling": "use_rope_scaling",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "seq_length": "max_position_embeddings",
    "bias_activation_fusion": "bias_gelu_fusion",
    "fp8_param": "fp8_param_gather",
}
# Providers that build megatron-core's plain GPTModel. Others (Gemma, Llama 4, GPT-OSS, vision) add arithmetic of their own.
_PLAIN_PROVIDER = re.compile(
    r"(GPT|MLA|Llama(2|3|31|32)?|CodeLlama|Qwen(2|25|3|3MoE)|Mistral(Small3)?|Mixtral|DeepSeek(V2|V2Lite|V3)?|Moonlight"
    r"|KimiK2|Nemotron[34]?)(Model)?Provider[0-9A-Z_]*"
)
# What Llama 3.1 is scaled by beside its factor. Bridge before 0.3 did it itself, under these names and "scale_factor"; since
# then megatron-core does, with these very numbers.
_SCALING = {"low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 8192}
# (activation function, gated) -> the argument that means it; None is the default, gelu.
_ACTIVATIONS = {
    ("silu", True): "swiglu",
    ("gelu", True): "geglu",
    ("quick_gelu", True): "quick_geglu",
    ("squared_relu", False): "squared_relu",
    ("gelu", False): None,
}


def read_run_config(directory: Path, vocabulary: int) -> argparse.Namespace:
    """The training arguments that the file stands for. ``vocabulary`` is the number of rows of the embeddings.

    Raises ``ConversionError`` when it is absent, not plain YAML, or of a model that is more than a GPT.
    """
    import yaml

    if not (directory / NAME).is_file():
        raise ConversionError(
            f"{directory}: neither the training arguments ('args') nor {NAME}: Megatron-Bridge writes that file after the "
            "tracker, so it may still be on its way"
        )
    path = inside(directory, NAME)
    try:
        size = path.stat().st_size
        content = {} if size > _MAX_BYTES else parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConversionError(f"{path}: not plain YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from error
    if size > _MAX_BYTES:
        raise ConversionError(f"{path}: has {size} bytes, that is no configuration")
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ConversionError(f"{path}: has no section 'model'")
    _check_provider(model, path)
    return argparse.Namespace(**_arguments(model, vocabulary, path))


def _check_provider(model: dict[str, Any], path: Path) -> None:
    target = str(model.get("_target_", ""))
    if not _PLAIN_PROVIDER.fullmatch(target.rpartition(".")[2]):
        raise ConversionError(
            f"{path}: model._target_ is {target!r}, which may compute more than megatron-core's GPTModel"
        )


def _arguments(model: dict[str, Any], vocabulary: int, path: Path) -> dict[str, Any]:
    plain = {
        _RENAMED.get(key, key): value
        for key, value in model.items()
        if isinstance(key, str) and key.isidentifier() and not key.startswith("_") and not isinstance(value, dict)
    }
    groups = model.get("num_query_groups")
    activation = _activation(model, path)
    return {
        **plain,
        "group_query_attention": groups is not None,
        "num_query_groups": groups,
        "untie_embeddings_and_output_weights": not model.get("share_embeddings_and_output_weights", True),
        "padded_vocab_size": vocabulary,
        "use_legacy_models": False,
        **({activation: True} if activation else {}),
        **({"heterogeneous_layers_config_path": str(path)} if model.get("heterogeneous_block_specs") else {}),
        **_older_rope_scaling(model, path),
    }


def _older_rope_scaling(model: dict[str, Any], path: Path) -> dict[str, Any]:
    if not model.keys() & _SCALING.keys():
        return {}
    if differ := [f"{name}={model.get(name)!r}" for name, number in _SCALING.items() if model.get(name) != number]:
        raise ConversionError(f"{path}: model.{', '.join(differ)}: expected the rope scaling of Llama 3.1, {_SCALING}")
    return {"use_rope_scaling": True, "rope_scaling_factor": model.get("scale_factor")}


def _activation(model: dict[str, Any], path: Path) -> str | None:
    function = model.get("activation_func", {"_target_": "gelu"})
    named = function.get("_target_") if isinstance(function, dict) and not function.get("_partial_") else function
    gated = bool(model.get("gated_linear_unit", False))
    key = (str(named).rpartition(".")[2], gated)
    if key not in _ACTIVATIONS:
        raise ConversionError(
            f"{path}: model.activation_func is {function!r} with gated_linear_unit={gated}: unsupported"
        )
    return _ACTIVATIONS[key]
