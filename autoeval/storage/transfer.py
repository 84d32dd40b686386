"""Objects of a store as files of a directory here: several at a time, each whole or not there, verified, resumable.

A file has its name only when all that is wanted of it is on the disk: it is written under another name, compared with
the object's size and, where the ETag is one, its MD5, synced, given the object's time, and renamed. So whatever is
killed in the middle, the next ``Transfer`` goes on with the files that are not there yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoeval.storage.errors import StorageError
from autoeval.storage.store import ObjectStore, StoredObject
from recorder.files import sync_directory

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20  # of one request; the memory of a transfer is ``parallel`` of them
PARTIAL = ".part"
RETRY_SECONDS = (0.5, 2.0, 6.0)  # of one request, before the whole transfer gives up


class Vanished(Exception):
    """An object was deleted."""


class Changed(Exception):
    """An object is no longer the one that was listed."""


class Aborted(Exception):
    """The caller wanted it to stop."""


@dataclass(frozen=True)
class Wanted:
    """``ranges`` are the (begin, end) in bytes that are needed, ``None`` for all. What is not needed becomes a hole: the
    file has its object's size all the same."""

    stored: StoredObject
    ranges: tuple[tuple[int, int], ...] | None = None

    @property
    def needed(self) -> int:
        """Bytes that come over the wire and take room on the disk."""
        return self.stored.size if self.ranges is None else sum(end - begin for begin, end in self.ranges)


class Transfer:
    """Of ``files``, listed below ``within`` in ``store``, into ``target``, ``parallel`` at a time.

    ``stop`` is asked between any two requests.
    """

    def __init__(
        self,
        store: ObjectStore,
        within: str,
        target: Path,
        files: Sequence[Wanted],
        *,
        parallel: int = 4,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._within, self._target = store, within, target
        self._files = tuple(files)
        self._parallel = parallel
        self._stop = stop
        self._failed = threading.Event()
        self._token = secrets.token_hex(4)  # another process, or thread, may be at the same files

    def missing(self) -> list[Wanted]:
        """What is not here yet."""
        return [file for file in self._files if not self._is_here(file)]

    def remove_unfinished(self) -> None:
        """What an attempt that failed, or was killed, left of files in the middle: it takes room, and is not gone on with."""
        for left in self._target.rglob(f".*{PARTIAL}"):
            left.unlink(missing_ok=True)

    def run(self) -> None:
        """Raises ``Vanished``, ``Changed``, ``Aborted``, ``StorageError`` (which may pass) and ``OSError`` of the disk.

        When it returns, all files are those that were listed: the store was asked again at the end.
        """
        self._target.mkdir(parents=True, exist_ok=True)
        self.remove_unfinished()
        missing = deque(sorted(self.missing(), key=lambda file: -file.needed))  # none is waited for alone at the end
        errors: list[Exception] = []
        # Not a pool of concurrent.futures: the end of the process would wait for a store that does not answer.
        threads = [
            threading.Thread(target=self._work, args=(missing, errors), name="transfer", daemon=True)
            for _ in range(min(self._parallel, len(missing)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: they are not to go on behind the caller's back
            self._failed.set()
            raise
        if errors:
            raise next((error for error in errors if not isinstance(error, Aborted)), errors[0])
        self._verify_still_there()

    def _work(self, missing: deque[Wanted], errors: list[Exception]) -> None:
        while not self._failed.is_set():
            try:
                file = missing.popleft()
            except IndexError:
                return
            try:
                self._fetch(file)
            except Exception as error:
                errors.append(error)
                self._failed.set()

    def _is_here(self, file: Wanted) -> bool:
        try:
            found = (self._target / file.stored.name).stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (file.stored.size, file.stored.modified_ns)

    def _fetch(self, file: Wanted) -> None:
        stored, final = file.stored, self._target / file.stored.name
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.{self._token}{PARTIAL}")
        digest = hashlib.md5(usedforsecurity=False)
        with partial.open("wb") as stream:
            os.truncate(stream.fileno(), stored.size)
            for begin, end in [(0, stored.size)] if file.ranges is None else file.ranges:
                stream.seek(begin)
                for start in range(begin, end, CHUNK_BYTES):
                    content = self._chunk(stored, start, min(end, start + CHUNK_BYTES))
                    digest.update(content)
                    stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.ranges is None:
            self._check_md5(stored, digest.hexdigest())
        os.utime(partial, ns=(stored.modified_ns, stored.modified_ns))
        partial.replace(final)
        sync_directory(final.parent)

    def _chunk(self, stored: StoredObject, start: int, end: int) -> bytes:
        name = self._name(stored.name)
        for seconds in (*RETRY_SECONDS, None):
            if self._stop() or self._failed.is_set():
                raise Aborted(f"{self._store.url_of(name)}: the transfer was stopped")
            try:
                content = self._store.read(name, start, end)
            except FileNotFoundError as error:
                raise Vanished(f"{self._store.url_of(name)} was deleted while it was copied") from error
            except StorageError as error:
                if error.lasting or seconds is None:
                    raise
                logger.debug("%s; again in %s s", error, seconds)
                self._failed.wait(seconds)
                continue
            if len(content) != end - start:
                raise Changed(f"{self._store.url_of(name)} is shorter than it was: it was uploaded again")
            return content
        raise AssertionError("the last attempt returns or raises")

    def _check_md5(self, stored: StoredObject, found: str) -> None:
        name = self._name(stored.name)
        if stored.md5 in (None, found):
            return
        try:
            now = self._store.object(name)
        except FileNotFoundError as error:
            raise Vanished(f"{self._store.url_of(name)} was deleted while it was copied") from error
        if now.etag != stored.etag:
            raise Changed(f"{self._store.url_of(name)} was uploaded again while it was copied")
        if not self._store.etag_is_md5(name):
            return
        raise StorageError(f"{self._store.url_of(name)}: what came has the MD5 {found}, the store says {stored.md5}")

    def _verify_still_there(self) -> None:
        there = self._listed_again()
        for file in self._files:
            stored = file.stored
            now = there.get(stored.name)
            url = self._store.url_of(self._name(stored.name))
            if now is None:
                raise Vanished(f"{url} was deleted while it was copied")
            if not same(now, stored):
                raise Changed(f"{url} was uploaded again while it was copied")

    def _listed_again(self) -> dict[str, StoredObject]:
        if len(self._files) > 1:
            return self._store.objects(self._within)
        with contextlib.suppress(FileNotFoundError):  # one file may lie among many
            return {file.stored.name: self._store.object(self._name(file.stored.name)) for file in self._files}
        return {}

    def _name(self, name: str) -> str:
        return f"{self._within}/{name}" if self._within else name


def same(one: StoredObject, other: StoredObject) -> bool:
    """Whether both are one upload of one content. Without an ETag its time must do."""
    marks = (one.etag, other.etag) if one.etag or other.etag else (one.modified_ns, other.modified_ns)
    return one.size == other.size and marks[0] == marks[1]
