"""Addresses as they may be shown: some have a password, a token or a signature in them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

MASK = "***"


def masked(text: str, address: str, *secrets: str | None) -> str:
    """``text`` without ``secrets`` and without what in the URL ``address`` is for its server alone: user, password, query."""
    try:
        parts = urlsplit(address)
        user, at, _ = parts.netloc.rpartition("@")
        hidden = [parts.query, f"{user}{at}", parts.password or "", unquote(parts.password or "")]
    except ValueError:
        hidden = [address]
    for secret in sorted({*hidden, *(secret or "" for secret in secrets)}, key=len, reverse=True):
        if len(secret) > 2:
            text = text.replace(secret, f"{MASK}@" if secret.endswith("@") else MASK)
    return text
