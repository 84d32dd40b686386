"""Model directories that are somewhere else: object storage (``autoeval.storage``), the Hugging Face cache.

Credentials are found by the storage's own library: the environment (``AWS_ACCESS_KEY_ID`` ...) or a profile file
(``AWS_PROFILE``, ``~/.aws``). ``s3://`` needs the package s3fs, ``gs://`` gcsfs, ``oss://`` ossfs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a model is made of; optimizer states and the like stay where they are.
_WANTED = (".json", ".safetensors", ".model", ".txt", ".jinja", ".bin", ".pth")


def local_directory(path: str, storage_options: Mapping[str, Any] | None = None) -> Path:
    """``path`` as a directory here: itself, a Hugging Face name in the local cache, or a copy of a URL's files.

    A copy is kept in ``$AUTOEVAL_CACHE`` (``~/.cache/autoeval``) under a name that changes with the files there.
    Raises ``FileNotFoundError`` when there is nothing, ``ValueError`` when the storage cannot be read.
    """
    if "://" in path:
        return _fetched(path, dict(storage_options or {}))
    if Path(path).is_dir():
        return Path(path)
    cached = in_hub_cache(path)
    if cached is None:
        raise FileNotFoundError(f"{path}: neither a directory here nor a model in the Hugging Face cache (HF_HOME)")
    return cached


def in_hub_cache(name: str) -> Path | None:
    """Where the cache has the model called ``name``; never asks the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, FileNotFoundError):
        return None


def _fetched(url: str, storage_options: dict[str, Any]) -> Path:
    from autoeval.storage import StorageError
    from autoeval.storage.cached import cached_directory

    try:
        return cached_directory(url, storage_options, lambda name: name.endswith(_WANTED))
    except StorageError as error:
        raise ValueError(str(error)) from error
