"""URLs and ``storage_options`` as people write them: what is refused before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Options that are, or hold, credentials in s3fs, gcsfs, adlfs, ossfs, and in what they hand on to boto.
_SECRET = re.compile(
    r"(^|_)(key|secret|token|password|passwd|username|credentials?|access_key(_id)?|connection_string|authorization)$",
    re.IGNORECASE,
)
HOW_TO_SIGN_IN = (
    "credentials come from the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) "
    "or ~/.aws/credentials, never from a configuration file"
)


def is_url(path: object) -> bool:
    """Whether ``path`` names something in a store, as ``s3://bucket/key`` does."""
    return isinstance(path, str) and _URL.match(path) is not None


def check_url(url: str) -> str:
    """``url`` without slashes at its end. Raises ``ValueError`` when it has credentials in it, or no bucket."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"the URL has credentials in it; {HOW_TO_SIGN_IN}")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a '?' or a '#' in it; expected scheme://bucket/path")
    if not parts.netloc.strip("."):
        raise ValueError("the URL names no bucket; expected scheme://bucket/path")
    if ".." in parts.path.split("/"):
        raise ValueError("the URL has '..' in it; expected scheme://bucket/path")
    return url.rstrip("/")


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for fsspec. Raises ``ValueError`` with the key of a secret; the secret itself is not repeated."""

    def look(value: Any, where: str) -> None:
        if isinstance(value, Mapping):
            for key, one in value.items():
                if _SECRET.search(str(key)):
                    raise ValueError(f"{where}{key} is a secret: {HOW_TO_SIGN_IN}")
                look(one, f"{where}{key}.")
        elif isinstance(value, list | tuple):
            for one in value:
                look(one, where)
        elif isinstance(value, str) and "://" in value and "@" in urlsplit(value).netloc:
            raise ValueError(f"{where.rstrip('.')} has credentials in it: {HOW_TO_SIGN_IN}")

    look(options, "")
    return dict(options)


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"
