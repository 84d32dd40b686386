"""A model as a command line names it: a directory, an adapter, a Megatron checkpoint, a name in the cache, a server."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.tasks.model_configs import BASE, build_model, check_files, check_model, generates_only, style_of
from recorder.masking import masked
from recorder.untrusted import parse_json

logger = logging.getLogger(__name__)

_SERVER_SECONDS = 10.0
_MEGATRON = frozenset({"torch_dist", "fsdp_dtensor", "torch"})


@dataclass(frozen=True)
class ModelWishes:
    """What a command line may say about its model beside its name; ``None`` leaves it to the model.

    ``kind``: ``base``, ``chat``, or ``auto``: ``chat`` when the tokenizer has a chat template. ``served_name`` is what a
    server calls its model, ``tokenizer`` what ``autoeval.convert --tokenizer`` takes (Megatron) or a directory,
    ``peft_path`` an adapter.
    """

    kind: str = "auto"
    max_seq_len: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    tokenizer: str | None = None
    peft_path: str | None = None
    served_name: str | None = None
    iteration: int | None = None


@dataclass(frozen=True)
class GivenModel:
    """``config`` is OpenCompass's dictionary, as run.py's configurations have it; ``source`` says what it is."""

    name: str
    source: str  # huggingface | adapter | megatron | server
    config: dict[str, Any]

    @property
    def generates_only(self) -> bool:
        return generates_only(self.config)

    @property
    def directory(self) -> Path | None:
        """Where its files are; ``None`` for a server."""
        if self.source == "server":
            return None
        from autoeval.models.remote import local_directory

        return local_directory(str(self.config["path"]))

    def load(self) -> Any:
        """The model with its weights. Raises ``ValueError`` or ``OSError`` for what cannot be loaded."""
        return build_model(self.config)

    def style(self, loaded: Any) -> Any:
        return style_of(self.config, loaded)


def understand(given: str, wishes: ModelWishes) -> GivenModel:
    """What ``given`` names. A Megatron checkpoint is converted here (once; a receipt tells that it was).

    Raises ``ValueError`` or ``OSError`` that names it and what was expected; no weights of a Hugging Face model are read.
    """
    if not given.strip():
        raise ValueError("the model is empty: expected a directory, a name in the Hugging Face cache or a server's URL")
    if given.startswith(("http://", "https://")):
        return _server(given, wishes)
    path = Path(given)
    if path.is_dir() and (megatron := _megatron(path, wishes)) is not None:
        return megatron
    config: dict[str, Any] = {"type": "HuggingFaceBaseModel", "abbr": path.resolve().name or given, "path": given}
    config |= _options(wishes)
    if wishes.tokenizer:
        config["tokenizer_path"] = wishes.tokenizer
    check_model(config, "the command line")
    check_files(config, "the command line")
    return _local(GivenModel(config["abbr"], "huggingface", config), wishes)


def _local(model: GivenModel, wishes: ModelWishes) -> GivenModel:
    """With the kind and the window that its own files allow."""
    from autoeval.models.adapter import base_of, is_adapter

    directory = model.directory
    assert directory is not None
    source, weights = model.source, directory
    if is_adapter(directory):
        source, weights = "adapter", base_of(directory)
    elif not (directory / "config.json").is_file():
        raise ValueError(
            f"{directory}: expected config.json (a Hugging Face model), adapter_config.json (an adapter) or a Megatron "
            "checkpoint"
        )
    config = dict(model.config)
    window = own_window(weights)
    if window is not None and wishes.max_seq_len is not None and wishes.max_seq_len > window:
        logger.warning(
            "max_seq_len %d: %s has a window of %d tokens, which is taken", wishes.max_seq_len, weights, window
        )
        config["max_seq_len"] = window
    if _kind(directory, weights, wishes) == "chat":
        config["type"] = "HuggingFacewithChatTemplate"
    return dataclasses.replace(model, source=source, config=config)


def _kind(directory: Path, weights: Path, wishes: ModelWishes) -> str:
    if wishes.kind not in ("auto", "base", "chat"):
        raise ValueError(f"model_type {wishes.kind!r}: expected auto, base or chat")
    if wishes.kind != "auto":
        return wishes.kind
    places = [Path(wishes.tokenizer)] if wishes.tokenizer else [directory, weights]
    tokenizer = next((place for place in places if (place / "tokenizer_config.json").is_file()), None)
    return "chat" if tokenizer is not None and _has_chat_template(tokenizer) else BASE


def _has_chat_template(directory: Path) -> bool:

    if (directory / "chat_template.jinja").is_file() or (directory / "chat_template.json").is_file():
        return True
    try:
        content = parse_json((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{directory / 'tokenizer_config.json'}: not JSON: {error}") from error
    return bool(isinstance(content, dict) and content.get("chat_template"))


def own_window(directory: Path) -> int | None:
    """The most tokens that the model in ``directory`` may see at once; ``None`` when its configuration does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def _options(wishes: ModelWishes) -> dict[str, Any]:
    named = {
        "max_seq_len": wishes.max_seq_len,
        "batch_size": wishes.batch_size,
        "peft_path": wishes.peft_path,
        "device": None if wishes.device == "auto" else wishes.device,
        "dtype": None if wishes.dtype == "auto" else wishes.dtype,
    }
    return {key: value for key, value in named.items() if value is not None}


def _megatron(path: Path, wishes: ModelWishes) -> GivenModel | None:
    """The converted checkpoint, or ``None`` when ``path`` is no Megatron checkpoint and no directory of such."""
    from autoeval.checkpoints import detect_format
    from autoeval.checkpoints.layout import TRACKER

    if not (path / TRACKER).is_file() and detect_format(path) not in _MEGATRON:
        return None
    from autoeval.convert import ConversionError, convert
    from autoeval.convert.source import iteration_directory
    from autoeval.convert.tokenizer import tokenizer_source

    if not wishes.tokenizer:
        raise ValueError(
            f"{path}: a Megatron checkpoint needs a tokenizer: vocab.json,merges.txt, a SentencePiece .model file or a "
            "Hugging Face directory"
        )
    try:
        source = iteration_directory(path, wishes.iteration)
        target = _converted_path(source)
        logger.info("converting %s to %s", source, target)
        convert(source, target, tokenizer=tokenizer_source(wishes.tokenizer))
    except ConversionError as error:
        raise ValueError(str(error)) from error
    name = f"{source.resolve().parent.name}-{source.name}"
    config = {"type": "HuggingFaceBaseModel", "abbr": name, "path": str(target), **_options(wishes)}
    return _local(GivenModel(name, "megatron", config), dataclasses.replace(wishes, tokenizer=None))


def _converted_path(source: Path) -> Path:
    """One place a save, so that it is converted once: ``$AUTOEVAL_CACHE/converted`` (``~/.cache/autoeval``)."""
    from autoeval.checkpoints import fingerprint

    cache = Path(os.environ.get("AUTOEVAL_CACHE", Path.home() / ".cache" / "autoeval"))
    return cache / "converted" / f"{source.resolve().parent.name}-{source.name}-{fingerprint(source)[:16]}"


def _server(url: str, wishes: ModelWishes) -> GivenModel:
    """Asked for its model's name when none is given. Chat is OpenAI's ``/chat/completions``, base its ``/completions``."""
    base = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    name = wishes.served_name or _served_name(base)
    kind = "OpenAICompletions" if wishes.kind == BASE else "OpenAI"
    config: dict[str, Any] = {"type": kind, "abbr": name, "path": name, "base_url": base}
    if wishes.batch_size:
        config["max_workers"] = wishes.batch_size
    if wishes.tokenizer:
        config["tokenizer_path"] = wishes.tokenizer
        if wishes.max_seq_len:
            config["max_seq_len"] = wishes.max_seq_len
    check_model(config, "the command line")
    return GivenModel(name, "server", config)


def _served_name(base: str) -> str:
    import requests

    key = os.environ.get("OPENAI_API_KEY")
    try:
        answer = requests.get(
            f"{base}/models",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_SERVER_SECONDS,
            allow_redirects=False,
        )
        answer.raise_for_status()
        listed: Mapping[str, Any] = answer.json()
        return str(listed["data"][0]["id"])
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        said = masked(f"{base}/models: cannot tell the model's name ({error})", base, key)
        raise ValueError(f"{said}; give it with served_name") from None
