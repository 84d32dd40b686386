"""Models and tokenizers that lie in a store, as directories and files here: copied once, by whichever process is first.

A copy is kept in ``$AUTOEVAL_CACHE`` (``~/.cache/autoeval``) under a name that changes with the objects there, so what is
found there is always what the store has now.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoeval.storage.errors import StorageError
from autoeval.storage.store import ObjectStore, StoredObject
from autoeval.storage.transfer import Changed, Transfer, Vanished, Wanted

logger = logging.getLogger(__name__)


def cached_directory(url: str, options: Mapping[str, Any] | None, is_wanted: Callable[[str], bool]) -> Path:
    """A directory with those objects below ``url`` whose names (relative, with ``/``) are wanted.

    Raises ``FileNotFoundError`` when there is none, ``StorageError`` when the store cannot be asked, ``OSError`` of the
    disk.
    """
    store = ObjectStore(url, options)
    found = {name: stored for name, stored in store.objects().items() if is_wanted(name)}
    if not found:
        raise FileNotFoundError(f"{url}: no model files there")
    return _cached(store, found)


def cached_path(url: str, options: Mapping[str, Any] | None = None) -> Path:
    """A file here for an object, a directory for what has objects below it. Raises as ``cached_directory``."""
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent.endswith(":/"):  # a whole bucket
        return cached_directory(url, options, lambda _: True)
    store = ObjectStore(parent, options)
    try:
        stored = store.object(name)
    except FileNotFoundError:
        return cached_directory(url, options, lambda _: True)
    return _cached(store, {name: stored}) / name


def _cached(store: ObjectStore, found: Mapping[str, StoredObject]) -> Path:
    marks = [(one.name, one.size, one.etag or one.modified_ns) for _, one in sorted(found.items())]
    key = hashlib.sha256(repr((store.url, marks)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("AUTOEVAL_CACHE", Path.home() / ".cache" / "autoeval"))
    target = cache / "models" / f"{store.url.rpartition('/')[2]}-{key}"
    if target.is_dir():
        return target
    partial = cache / "partial" / target.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        if not target.is_dir():  # unless another process was first
            logger.info("fetching %s (%d files)", store.url, len(found))
            try:
                Transfer(store, "", partial, [Wanted(stored) for stored in found.values()]).run()
            except (Changed, Vanished) as error:
                raise StorageError(f"{error}: it changes there, try again") from error
            partial.rename(target)
    return target


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; one that was killed does not count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
