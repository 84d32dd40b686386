"""PEFT adapters, merged into the weights: afterwards the model is an ordinary one and as fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorder.untrusted import parse_json

CONFIG = "adapter_config.json"


def is_adapter(directory: Path) -> bool:
    """Whether ``directory`` holds an adapter and no whole model, as a checkpoint of a LoRA run does."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").exists()


def base_of(directory: Path) -> Path:
    """The directory of the model that the adapter in ``directory`` was trained on, as its configuration names it.

    Raises ``ValueError`` when the configuration does not say, and ``FileNotFoundError`` when the model is not here: a
    relative name is looked up beside the adapter, then from the working directory, then in the Hugging Face cache.
    """
    try:
        name = parse_json((directory / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{directory / CONFIG}: not an adapter's configuration: {error}") from error
    if not isinstance(name, str) or not name:
        raise ValueError(f"{directory / CONFIG}: base_model_name_or_path is {name!r}, expected a model directory")
    from autoeval.models.remote import in_hub_cache

    found = next((path for path in (directory / name, Path(name)) if path.is_dir()), None) or in_hub_cache(name)
    if found is None:
        raise FileNotFoundError(
            f"{directory / CONFIG}: the base model {name!r} is not here, nor in the Hugging Face cache"
        )
    return found


def with_adapter(model: Any, directory: Path) -> Any:
    """``model`` with the adapter of ``directory`` merged in (LoRA and its relatives, which are sums of weights).

    Raises ``FileNotFoundError`` when there is no adapter and ``ValueError`` for one that is of another model or that
    cannot be merged.
    """
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(f"{directory}: no adapter ({CONFIG}) there")
    from peft import PeftConfig, PeftModel

    kind = PeftConfig.from_pretrained(str(directory)).peft_type
    try:
        adapted = PeftModel.from_pretrained(model, str(directory), is_trainable=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{directory}: the adapter does not fit the model: {error}") from error
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(
            f"{directory}: an adapter of the kind {kind} cannot be merged into weights; only LoRA-like can"
        )
    return adapted.merge_and_unload()
