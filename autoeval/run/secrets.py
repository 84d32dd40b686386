"""Secrets in a configuration go to the tasks by their environment; files and logs have only the variable's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_NAMES = re.compile(
    r"(^|_)(key|api_?key|secret|token|password|passwd|passphrase|auth|authorization|credentials?|cookie|webhook)$",
    re.IGNORECASE,
)
_IN_QUERY = re.compile(r"[?&][^=&]*(key|token|secret|sig|signature|password|credential)=[^&]", re.IGNORECASE)
# Where a name like these is no secret: templates and tokenizers have tokens of their own.
_NOT_SECRET = re.compile(r"(^|_)(ice|sep|bos|eos|pad|unk|mask|cls)_token$", re.IGNORECASE)


def without_secrets(models: Any) -> tuple[Any, dict[str, str]]:
    """A copy of ``models`` with ``${AUTOEVAL_SECRET_n}`` for every secret written out, and those variables' values."""
    found: dict[str, str] = {}

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(one, str(key)) for key, one in value.items()}
        if isinstance(value, list):
            return [clean(one, name) for one in value]
        if isinstance(value, str) and value and _is_secret(name, value):
            variable = next((key for key, known in found.items() if known == value), f"AUTOEVAL_SECRET_{len(found)}")
            found[variable] = value
            return "${" + variable + "}"
        return value

    return clean(models, ""), found


def _is_secret(name: str, value: str) -> bool:
    if value == "ENV" or re.fullmatch(r"\$\{\w+\}", value):
        return False  # says where the secret is, and is none
    if _NAMES.search(name) and not _NOT_SECRET.search(name):
        return True
    if "://" not in value:
        return False
    if _IN_QUERY.search(value):
        return True
    try:
        parts = urlsplit(value)
        return bool(parts.password or (parts.username and parts.scheme in ("http", "https")))  # https://token@host
    except ValueError:
        return False
