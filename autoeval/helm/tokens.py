"""What a tokenizer has made of texts, kept for the next checkpoints: prompts and references stay the same.

HELM tokenizes every prompt at least twice a run (to fit it into the window, and to count it), and so does the model.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

KEPT_TOKENS = 4_000_000  # of one tokenizer, 4 bytes each and their texts; beyond, all is made anew

TEXT = "text"  # ids of a text without special tokens, as HELM counts

_FINGERPRINTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_TABLES: dict[str, TokenTable] = {}  # of the last tokenizer only, by its fingerprint


def fingerprint(tokenizer: Any) -> str | None:
    """A hash of the tokenizer itself; ``None`` for one without a serialized form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    known = _FINGERPRINTS.get(tokenizer)
    if known is None:
        content = f"{backend.to_str()}{tokenizer.special_tokens_map}{tokenizer.num_special_tokens_to_add(pair=False)}"
        # These are in tokenizer_config.json only: whether "</s>" in a text is one token, and how tokens' texts are made.
        content += "".join(
            f"{name}={getattr(tokenizer, name, None)}"
            for name in ("split_special_tokens", "clean_up_tokenization_spaces")
        )
        known = _FINGERPRINTS[tokenizer] = hashlib.sha256(content.encode()).hexdigest()
    return known


def table_of(tokenizer: Any) -> TokenTable:
    """The table of ``tokenizer``; equal tokenizers (two checkpoints of one run) share one, and one of which nothing can be
    told has a new one every time."""
    name = fingerprint(tokenizer)
    if name is None:
        return TokenTable()
    table = _TABLES.get(name)
    if table is None:
        _TABLES.clear()
        table = _TABLES[name] = TokenTable()
    return table


class TokenTable:
    """(kind, text) -> its tokens: ids, or their texts."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, str], Sequence[Any]] = {}
        self._size = 0
        self._alone: dict[int, str] = {}

    def get(self, kind: Hashable, text: str) -> Sequence[Any] | None:
        return self._kept.get((kind, text))

    def keep(self, kind: Hashable, text: str, tokens: Sequence[Any]) -> None:
        if (kind, text) in self._kept:
            return
        if self._size + len(tokens) > KEPT_TOKENS:
            self._kept.clear()
            self._size = 0
        self._kept[kind, text] = array("i", tokens) if tokens and isinstance(tokens[0], int) else tuple(tokens)
        self._size += len(tokens)


def token_texts(tokenizer: Any, ids: Iterable[int]) -> Mapping[int, str]:
    """The text of each of ``ids`` by itself, decoded once in the life of the tokenizer's table."""
    known = table_of(tokenizer)._alone  # at most the vocabulary
    for token in ids:
        if token not in known:
            known[token] = tokenizer.decode([token])
    return known


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of prompts, with the special tokens that the tokenizer adds itself (Llama's BOS)."""
    if fingerprint(tokenizer) is None:
        return [tuple(tokenizer(text)["input_ids"]) for text in texts]
    table, kind = table_of(tokenizer), prompt_kind(tokenizer)
    found = {text: table.get(kind, text) for text in texts}
    if unknown := [text for text, ids in found.items() if ids is None]:
        for text, ids in zip(unknown, tokenizer(unknown)["input_ids"], strict=True):
            table.keep(kind, text, ids)
            found[text] = ids
    ids_of = {text: tuple(ids or ()) for text, ids in found.items()}
    return [ids_of[text] for text in texts]


def prompt_kind(tokenizer: Any) -> str:
    """What prompts' ids are called in the table: where the tokenizer adds nothing, they are those of the bare text."""
    return "prompt" if tokenizer.num_special_tokens_to_add(pair=False) else TEXT
