"""PEFT adapters, merged into the weights: afterwards the model is an ordinary one and as fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def with_adapter(model: Any, directory: Path) -> Any:
    """``model`` with the adapter of ``directory`` merged in (LoRA and its relatives, which are sums of weights).

    Raises ``FileNotFoundError`` when there is no adapter and ``ValueError`` for one that is of another model or that
    cannot be merged.
    """
    if not (directory / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{directory}: no adapter (adapter_config.json) there")
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
