"""Model directories that are somewhere else: object storage through fsspec, the Hugging Face cache.

Credentials are found by the storage's own library: the environment (``AWS_ACCESS_KEY_ID`` ...) or a profile file
(``AWS_PROFILE``, ``~/.aws``). ``s3://`` needs the package s3fs, ``gs://`` gcsfs, ``oss://`` ossfs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

logger = logging.getLogger(__name__)

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
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url, **storage_options)
        listing: dict[str, Any] = fs.find(root, detail=True)
    except ImportError as error:
        raise ValueError(f"{url}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: nothing there") from error
    except Exception as error:  # every storage has its own
        raise ValueError(f"{url}: cannot be listed: {type(error).__name__}: {error}") from error
    base = root.rstrip("/")
    files = {name[len(base) + 1 :]: info for name, info in sorted(listing.items()) if name.endswith(_WANTED)}
    if not files:
        raise FileNotFoundError(f"{url}: no model files there")
    if any(".." in PurePosixPath(name).parts for name in files):
        raise ValueError(f"{url}: a file name there leaves the directory")
    marks = [(name, info.get("size"), str(info.get("ETag") or info.get("mtime") or "")) for name, info in files.items()]
    key = hashlib.sha256(repr((url, marks)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("AUTOEVAL_CACHE", Path.home() / ".cache" / "autoeval"), "models")
    target = cache / f"{PurePosixPath(base).name}-{key}"
    if not target.is_dir():
        _copy(fs, base, files, target, url)
    return target


def _copy(fs: Any, base: str, files: Mapping[str, Any], target: Path, url: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for name, info in files.items():
            logger.info("fetching %s/%s", url.rstrip("/"), name)
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{base}/{name}", str(partial / name))
            size = (partial / name).stat().st_size
            if info.get("size") not in (None, size):
                raise ValueError(f"{url}: {name} has {size} bytes here, but {info['size']} there: it changed meanwhile")
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # unless another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
