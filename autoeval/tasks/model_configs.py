"""Models in a configuration (OpenCompass's dictionaries): checked before a run, built where they are needed."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from autoeval.datasets.names import class_name, look_up
from autoeval.models.requests import LanguageModel
from autoeval.openicl.styles import Style, build_style

logger = logging.getLogger(__name__)

BASE, CHAT, SERVER, META = "base", "chat", "server", "meta"
MODEL_TYPES = {
    "HuggingFaceBaseModel": BASE,
    "HuggingFace": BASE,  # OpenCompass's older names
    "HuggingFaceCausalLM": BASE,
    "HuggingFacewithChatTemplate": CHAT,
    "OpenAI": SERVER,
    "OpenAISDK": SERVER,
    "OpenAICompletions": SERVER,
    "Llama2": META,
}
_COMMON = {"type", "abbr", "path", "max_seq_len", "max_out_len", "min_out_len", "batch_size", "run_cfg"}
_COMMON |= {"meta_template", "end_str", "stop_words", "generation_kwargs", "pred_postprocessor"}
_HF = {"tokenizer_path", "tokenizer_kwargs", "model_kwargs", "peft_path", "pad_token_id", "batch_padding"}
_HF |= {
    "dtype",
    "device",
    "devices",
    "batch_tokens",
    "storage_options",
    "extract_pred_after_decode",
    "tokenizer_only",
    "mode",
}
_KEYS = {
    BASE: _COMMON | _HF,
    CHAT: _COMMON | _HF,
    META: _COMMON | _HF,
    SERVER: _COMMON
    | {"base_url", "openai_api_base", "key", "api_key", "chat", "retry", "query_per_second", "max_workers"}
    | {"timeout_seconds", "tokenizer_path", "temperature", "tokenizer_kwargs"},
}
_PLACED = {"torch_dtype", "dtype", "device_map", "max_memory", "offload_folder"}
_MODEL_KWARGS = _PLACED | {"trust_remote_code", "low_cpu_mem_usage", "use_safetensors"}
_MAPS = {"balanced", "balanced_low_0", "sequential"}  # accelerate's, beside auto
_TOKENIZER_KWARGS = {"padding_side", "truncation_side", "trust_remote_code", "use_fast", "padding", "truncation"}
_GENERATION_KWARGS = {"do_sample", "temperature", "top_p", "top_k", "num_return_sequences"}
_GENERATING = ("GenInferencer", "SCInferencer", "ChatInferencer")
_REFERENCE = re.compile(r"\$\{(\w+)\}")


def kind_of(model: Mapping[str, Any]) -> str:
    """``base``, ``chat``, ``server`` or ``meta``."""
    return look_up(MODEL_TYPES, model.get("type", ""), "model type")


def generates_only(model: Mapping[str, Any]) -> bool:
    """A chat server gives no log-probabilities of what it is sent."""
    kind = kind_of(model)
    return kind == SERVER and _is_chat(model)


def check_model(model: Any, where: str) -> None:
    """Raises ``ValueError`` naming what a model's configuration has or lacks."""
    if not isinstance(model, Mapping):
        raise ValueError(f"{where}: a model is dict(type=..., path=...), found {model!r}")
    try:
        kind = kind_of(model)
        if not model.get("path"):
            raise ValueError("it lacks path")
        _refuse_unknown(model, _KEYS[kind], "key")
        _refuse_unknown(model.get("model_kwargs") or {}, _MODEL_KWARGS, "key of model_kwargs")
        _refuse_unknown(model.get("tokenizer_kwargs") or {}, _TOKENIZER_KWARGS, "key of tokenizer_kwargs")
        _refuse_unknown(model.get("generation_kwargs") or {}, _GENERATION_KWARGS, "key of generation_kwargs")
        if not _is_count(devices := model.get("devices", "auto")):
            raise ValueError(f"devices is {devices!r}, expected auto or a positive number")
        if kind == SERVER and not _base_url(model):
            raise ValueError("it lacks base_url (like http://127.0.0.1:8000/v1)")
    except ValueError as error:
        raise _of(model, where, error) from error


def check_files(model: Mapping[str, Any], where: str) -> None:
    """Raises ``ValueError`` naming a path that is not here: a run with no model is over before it begins."""
    for key in ("path", "tokenizer_path", "peft_path") if kind_of(model) != SERVER else ("tokenizer_path",):
        path = str(model.get(key) or "")
        if path and "://" not in path and not Path(path).exists():
            from autoeval.models.remote import in_hub_cache

            if in_hub_cache(path) is None:
                problem = f"{key} {path!r}: no such file or directory, nor a model in the Hugging Face cache (HF_HOME)"
                raise _of(model, where, problem)


def _of(model: Mapping[str, Any], where: str, problem: object) -> ValueError:
    return ValueError(f"{where}: model '{model.get('abbr') or model.get('path', '?')}': {problem}")


def build_model(model: Mapping[str, Any]) -> LanguageModel:
    """Load it. Raises ``ValueError`` or ``OSError`` for what cannot be loaded or is not supported."""
    kind = kind_of(model)
    if kind == SERVER:
        return _server(model)
    from autoeval.models.remote import local_directory

    storage = {key: resolved(value) for key, value in (model.get("storage_options") or {}).items()}

    def directory(key: str) -> Path | None:
        return local_directory(str(model[key]), storage) if model.get(key) else None

    path = directory("path")
    assert path is not None
    if kind == META:
        from autoeval.tasks.meta_llama import huggingface_copy

        path = huggingface_copy(path, model)
    kwargs, window = model.get("model_kwargs") or {}, model.get("max_seq_len")
    for key in sorted({*kwargs, *(model.get("tokenizer_kwargs") or {})} - _PLACED):
        logger.info("%s has no effect: padding is exact here, and no code of a checkpoint is run", key)
    options: dict[str, Any] = {
        "dtype": _dtype(model.get("dtype") or kwargs.get("torch_dtype") or kwargs.get("dtype") or "auto"),
        **_placement(model.get("device"), kwargs),
        "max_seq_len": window,
        "batch_tokens": model.get("batch_tokens") or "auto",
        "tokenizer_path": directory("tokenizer_path") if kind != META else None,
        "peft_path": directory("peft_path"),
    }
    from autoeval.models.loading import load_model

    loaded = load_model(path, devices=_devices(model), **options)
    if model.get("batch_size") and not model.get("batch_tokens"):
        loaded.batch_tokens = int(model["batch_size"]) * loaded.max_seq_len
    return loaded


def style_of(model: Mapping[str, Any], loaded: LanguageModel | None = None) -> Style:
    """How the model wants turns: its ``meta_template``, or a chat model's own template (of the ``loaded`` model).

    Raises ``ValueError`` for a meta template of another shape and for a chat model without a chat template.
    """
    chat = kind_of(model) == CHAT and loaded is not None
    return build_style(
        model.get("meta_template"), tokenizer=loaded.tokenizer if loaded is not None else None, chat=chat
    )


def with_model_defaults(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """``dataset`` with what the model's configuration says about generation, where the dataset says nothing itself."""
    infer_cfg = dict(dataset["infer_cfg"])
    inferencer = dict(infer_cfg["inferencer"])
    eval_cfg = dict(dataset["eval_cfg"])
    for pattern, postprocessor in (model.get("pred_postprocessor") or {}).items():
        if fnmatch(str(dataset["abbr"]), pattern):
            eval_cfg["pred_postprocessor"] = postprocessor
    if class_name(inferencer.get("type", "")) not in _GENERATING:
        return {**dataset, "eval_cfg": eval_cfg}
    for key in ("max_out_len", "min_out_len", "generation_kwargs"):
        if model.get(key) is not None:
            inferencer.setdefault(key, model[key])
    ends = [*(model.get("stop_words") or []), *([model["end_str"]] if model.get("end_str") else [])]
    if ends:
        own = inferencer.get("stop", ())
        inferencer["stop"] = list(dict.fromkeys([*([own] if isinstance(own, str) else own), *ends]))
    return {**dataset, "infer_cfg": {**infer_cfg, "inferencer": inferencer}, "eval_cfg": eval_cfg}


def resolved(value: Any) -> Any:
    """``${NAME}`` from the environment. Raises ``ValueError`` when the variable is not set."""
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return _REFERENCE.sub(replace, value)


def _server(model: Mapping[str, Any]) -> LanguageModel:
    from autoeval.models.server import ChatServer, CompletionsServer

    key = model.get("key") or model.get("api_key") or "ENV"
    if key == "ENV":  # as OpenCompass has it
        key = os.environ.get("OPENAI_API_KEY")
    options: dict[str, Any] = {
        name: model[name] for name in ("retry", "query_per_second", "max_workers", "timeout_seconds") if name in model
    }
    return (ChatServer if _is_chat(model) else CompletionsServer)(
        str(model["path"]),
        base_url=str(resolved(_base_url(model))),
        key=resolved(key),
        tokenizer_path=model.get("tokenizer_path"),
        max_seq_len=model.get("max_seq_len"),
        **options,
    )


def _base_url(model: Mapping[str, Any]) -> Any:
    url = model.get("base_url") or model.get("openai_api_base")
    if isinstance(url, str):  # OpenCompass's names the whole endpoint
        url = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    return url


def _is_chat(model: Mapping[str, Any]) -> bool:
    return bool(model.get("chat", class_name(model["type"]) != "OpenAICompletions"))


def _dtype(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _placement(device: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """``device_map``: ``auto``, alone or with ``device: auto``, lays a model over devices when it fits none, by free memory;
    a map, or another name of accelerate's, always. The name of a device is that device.

    Raises ``ValueError`` for anything else, and for a map beside a device.
    """
    given = kwargs.get("device_map")
    if given is None or isinstance(given, str):
        if given not in _MAPS:
            return {"device": device or given or "auto"}
    elif not isinstance(given, Mapping):
        raise ValueError(
            f"device_map {given!r}: expected auto, cpu, a device like cuda:0, or modules with their devices"
        )
    else:
        _refuse_missing_gpus(given)
    if device not in (None, "auto"):
        raise ValueError(f"device {device} and a device_map are both given")
    rest = {key: kwargs[key] for key in ("max_memory", "offload_folder") if kwargs.get(key) is not None}
    return {"device_map": given, **rest}


def _refuse_missing_gpus(places: Mapping[str, Any]) -> None:
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for place in places.values():
        number = str(place).removeprefix("cuda:")
        if (number == "cuda" or number.isdigit()) and (0 if number == "cuda" else int(number)) >= here:
            raise ValueError(f"device_map {dict(places)!r}: this process sees {here} GPUs (CUDA_VISIBLE_DEVICES)")


def _is_count(devices: Any) -> bool:
    return devices == "auto" or (isinstance(devices, int) and not isinstance(devices, bool) and devices > 0)


def _devices(model: Mapping[str, Any]) -> int | str:
    """``devices``; else as many of the GPUs here as the task asked its runner for, which may be fewer or none."""
    if model.get("devices"):
        return cast("int | str", model["devices"])
    asked = int((model.get("run_cfg") or {}).get("num_gpus", 1))
    if asked <= 1:
        return 1
    import torch

    return max(1, min(asked, torch.cuda.device_count()))


def _refuse_unknown(options: Mapping[str, Any], known: set[str], what: str) -> None:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(sorted(known))})"
            raise ValueError(f"unknown {what} '{key}'{hint}")
