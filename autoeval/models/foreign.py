"""What a downloaded model directory may ask for beside code of its own (which ``trust_remote_code=False`` refuses)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorder.untrusted import parse_json

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


def refuse_foreign(directory: Path, config: Any) -> None:
    """Raises ``ValueError`` for weights outside of ``directory``, and for a kernel that would be downloaded and run.

    transformers joins the index's file names to the directory as they are, and takes ``attn_implementation: owner/name``
    in config.json as the name of compiled code on the Hugging Face hub. ``config`` is the loaded configuration.
    """
    for name in _IMPLEMENTATIONS:
        wanted = getattr(config, name, None)
        if isinstance(wanted, str) and "/" in wanted:
            raise ValueError(
                f"{directory / 'config.json'}: {name.lstrip('_')} is {wanted!r}, code from the hub that this model would run: "
                "expected eager, sdpa or flash_attention_2"
            )
    for index in _INDICES:
        if not (directory / index).is_file():
            continue
        try:
            files = set(parse_json((directory / index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{directory / index}: not an index of weights: {type(error).__name__}: {error}"
            ) from error
        for file in files:
            if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"{directory / index}: {file!r} is not inside of the model's directory")
