"""One store, asked for listings and bytes. Every trouble with it is a ``StorageError``; what is gone, a
``FileNotFoundError``."""

from __future__ import annotations

import contextlib
import email.utils
import io
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from autoeval.storage.errors import StorageError, explain, says_no_bucket
from autoeval.storage.options import check_url

CONNECT_SECONDS, READ_SECONDS = 5, 30
BLOCK_BYTES = 1 << 20  # what is asked for at least when a part of an object is read
KNOWN_ERRORS = (StorageError, FileNotFoundError)


@dataclass(frozen=True)
class StoredObject:
    """``name`` is relative to what was listed; ``size`` in bytes; ``modified_ns`` since the epoch, by the store's clock
    (of S3 a multiple of a second, and of a multipart upload its beginning). ``etag`` is empty where a store has none.
    """

    name: str
    size: int
    modified_ns: int
    etag: str = ""

    @property
    def md5(self) -> str | None:
        """Of an object that was uploaded in one piece, unencrypted, the ETag is the MD5 of its bytes, in hex."""
        plain = len(self.etag) == 32 and all(digit in "0123456789abcdef" for digit in self.etag)
        return self.etag if plain else None


class ObjectStore:
    """``url`` is where names begin. May be used by several threads. Nothing is opened before the first question.

    ``options`` go to fsspec (``endpoint_url``, ``profile``, ``anon``, …). Listings are never taken from a cache.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = check_url(url)
        self._options = dict(options or {})
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._offset: tuple[float, float] | None = None  # (seconds, when by the monotonic clock)

    def children(self, name: str = "") -> tuple[dict[str, StoredObject], list[str]]:
        """One level below ``name``: the objects by name, and the names that have objects below them.

        Nothing there is two empty answers, as S3 knows no directories.
        """
        objects: dict[str, StoredObject] = {}
        folders: list[str] = []
        with self._asking(name) as (fs, root):
            try:
                entries = fs.ls(_key(root, name), detail=True, refresh=True)
            except FileNotFoundError as error:
                self._refuse_no_bucket(error)
                entries = []
        base = _key(root, name)
        for entry in entries:
            found = _relative(entry["name"], base)
            if found is None:
                continue
            if entry.get("type") == "directory":
                folders.append(found)
            else:
                objects[found] = _stored(found, entry)
        return objects, folders

    def objects(self, name: str = "") -> dict[str, StoredObject]:
        """All objects below ``name``, however deep, by their names relative to it."""
        with self._asking(name) as (fs, root):
            try:
                entries = fs.find(_key(root, name), detail=True, withdirs=False)
            except FileNotFoundError as error:
                self._refuse_no_bucket(error)
                entries = {}
        base = _key(root, name)
        found: dict[str, StoredObject] = {}
        for path, entry in entries.items():
            relative = _relative(path, base)
            # A key that ends in a slash is what consoles make for a folder.
            if relative is not None and entry.get("type") != "directory" and not relative.endswith("/"):
                found[relative] = _stored(relative, entry)
        return found

    def object(self, name: str = "") -> StoredObject:
        """One object as it is now. Raises ``FileNotFoundError``."""
        with self._asking(name) as (fs, root):
            entry = fs.info(_key(root, name), refresh=True) if hasattr(fs, "call_s3") else fs.info(_key(root, name))
        if entry.get("type") == "directory":
            raise FileNotFoundError(f"{self.url_of(name)} is no object")
        return _stored(name, entry)

    def etag_is_md5(self, name: str) -> bool:
        """False for objects that the store encrypts with a key of its own service, whose ETag only looks like an MD5."""
        with self._asking(name) as (fs, root):
            if not hasattr(fs, "call_s3"):
                return False
            bucket, _, key = _key(root, name).partition("/")
            answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
        return answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``, all by default. Raises ``FileNotFoundError``."""
        if start is not None and end is not None and end <= start:
            return b""
        with self._asking(name) as (fs, root):
            content: bytes = fs.cat_file(_key(root, name), start=start, end=end)
        return content

    def open(self, stored: StoredObject, within: str = "") -> io.BufferedReader:
        """``stored``, which was listed below ``within``, as a file that asks only for the parts that are read."""
        name = f"{within}/{stored.name}" if within else stored.name
        return io.BufferedReader(_Ranges(self, name, stored.size), BLOCK_BYTES)

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def clock_offset(self) -> float:
        """Seconds by which the store's clock is ahead of ours, as well as it tells; asked every ten minutes."""
        moment = time.monotonic()
        if self._offset is None or moment - self._offset[1] > 600:
            self._offset = (self._ask_offset(), moment)
        return self._offset[0]

    def forget(self) -> None:
        """The next question opens the store anew: credentials may have been renewed."""
        with self._lock:
            self._opened = None

    def _ask_offset(self) -> float:
        with self._asking("") as (fs, root):
            if not hasattr(fs, "call_s3"):
                return 0.0
            answer = fs.call_s3("list_objects_v2", Bucket=root.split("/")[0], MaxKeys=1, Prefix=root.partition("/")[2])
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        try:
            there = email.utils.parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return 0.0
        offset = there - time.time()
        return offset if abs(offset) > 2 else 0.0  # the header counts whole seconds

    def _refuse_no_bucket(self, error: FileNotFoundError) -> None:
        if says_no_bucket(error):
            raise explain(self.url, error) from error

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[tuple[Any, str]]:
        try:
            yield self._filesystem()
        except FileNotFoundError as error:
            self._refuse_no_bucket(error)
            raise FileNotFoundError(f"{self.url_of(name)} is not there") from error
        except KNOWN_ERRORS:
            raise
        except Exception as error:  # each library has its own
            raise explain(self.url_of(name), error) from error

    def _filesystem(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                import fsspec

                # They tell where credentials were found, at DEBUG whole requests with their signatures.
                for library in ("botocore", "aiobotocore", "s3fs", "fsspec", "gcsfs", "urllib3"):
                    logging.getLogger(library).setLevel(logging.WARNING)
                options = dict(self._options)
                if self.url.startswith(("s3://", "s3a://")):
                    timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
                    # Who asks tries again, and says so meanwhile: the libraries below are not to do it for minutes.
                    retries = {"retries": {"max_attempts": 2, "mode": "standard"}}
                    options["config_kwargs"] = {**timeouts, **retries, **options.get("config_kwargs", {})}
                options |= {"use_listings_cache": False, "skip_instance_cache": True}
                fs, root = fsspec.core.url_to_fs(self.url, **options)
                if hasattr(fs, "retries"):
                    fs.retries = 2
                self._opened = (fs, root.rstrip("/"))
            return self._opened


class _Ranges(io.RawIOBase):
    """A file of which only what is read is fetched."""

    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._at + len(buffer))
        content = self._store.read(self._name, self._at, end)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _key(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def _relative(path: str, base: str) -> str | None:
    """``path`` below ``base``; ``None`` for what is not, or for a name that would lead out of a directory."""
    path, base = path.lstrip("/"), base.strip("/")
    if not path.startswith(f"{base}/"):
        return None
    name = path[len(base) + 1 :]
    parts = name.rstrip("/").split("/")
    strange = {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable()
    return None if not name or strange else name


def _stored(name: str, entry: Mapping[str, Any]) -> StoredObject:
    etag = str(entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or "").strip('"')
    return StoredObject(name, int(entry.get("size") or 0), _modified_ns(entry), etag)


def _modified_ns(entry: Mapping[str, Any]) -> int:
    """Under the names that fsspec's stores give it."""
    for key in ("LastModified", "last_modified", "updated", "mtime", "modified", "created"):
        value = entry.get(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            return int(value.timestamp() * 1e6) * 1000
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0
