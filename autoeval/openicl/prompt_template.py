"""Prompt templates, in OpenICL's terms: a string, one per label, or a meta template of rounds.

A base model has no chat format, so the rounds of a meta template are laid one under the other, in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

META_KEYS = frozenset({"begin", "round", "end"})
_FIELD = re.compile(r"\{(\w+)\}")


def safe_format(text: str, columns: Mapping[str, Any]) -> str:
    """Put ``columns`` in place of ``{name}``; braces that name no column stay. One pass: values are not formatted."""
    return _FIELD.sub(lambda match: str(columns.get(match[1], match[0])), text)


class PromptTemplate:
    """``template``: a string, a meta template (``begin``, ``round``, ``end``), or a mapping from label to either.

    ``ice_token`` marks where the in-context examples go, ``sep_token`` where the answer begins (``normalizing_str``).
    Raises ``ValueError`` for a template of another shape.
    """

    def __init__(self, template: Any, ice_token: str | None = None, sep_token: str | None = None) -> None:
        self.ice_token = ice_token
        self.sep_token = sep_token
        self.by_label: dict[Any, list[str]] | None = None
        self.pieces: list[str] = []
        if isinstance(template, Mapping) and not set(template) <= META_KEYS:
            self.by_label = {label: _pieces(part, f"label {label!r}") for label, part in template.items()}
        else:
            self.pieces = _pieces(template, "template")
        self.is_meta = any(
            isinstance(part, Mapping)
            for part in (template.values() if isinstance(template, Mapping) and self.by_label else [template])
        )
        parts = list(self.by_label.values()) if self.by_label is not None else [self.pieces]
        if ice_token and not all(any(ice_token in piece for piece in part) for part in parts):
            raise ValueError(f"the ice_token {ice_token!r} is not in every template: examples would be lost")

    @property
    def labels(self) -> list[Any] | None:
        return None if self.by_label is None else list(self.by_label)

    def format(self, columns: Mapping[str, Any], *, label: Any = None, ice: str = "", keep_sep: bool = False) -> str:
        """The prompt of one row. ``label`` selects the template when there is one per label.

        The examples are inserted after formatting, so braces in them are safe.
        """
        pieces = self.pieces if self.by_label is None else self._of_label(label)
        made = []
        for piece in pieces:
            text = piece
            if self.sep_token and not keep_sep:
                text = text.replace(self.sep_token, "")
            if self.ice_token and self.ice_token in text:
                text = ice.join(safe_format(part, columns) for part in text.split(self.ice_token))
            else:
                text = safe_format(text, columns)
            if text:
                made.append(text)
        return "\n".join(made)

    def format_example(self, columns: Mapping[str, Any], *, label: Any = None) -> str:
        """One in-context example: the row with its answer, free of both tokens."""
        return self.format(columns, label=label)

    def _of_label(self, label: Any) -> list[str]:
        assert self.by_label is not None
        for known, pieces in self.by_label.items():
            if str(known) == str(label):  # JSON's "1" and Python's 1 are one label
                return pieces
        raise ValueError(f"there is no template for label {label!r} (there are: {', '.join(map(str, self.by_label))})")


def _pieces(template: Any, what: str) -> list[str]:
    """A string is one piece; of a meta template every part and round is one."""
    if isinstance(template, str):
        return [template]
    if not isinstance(template, Mapping) or not set(template) <= META_KEYS:
        raise ValueError(f"{what}: expected a string or a mapping with begin, round, end; found {template!r}")
    pieces: list[str] = []
    for key in ("begin", "round", "end"):
        part = template.get(key, [])
        for entry in [part] if isinstance(part, (str, Mapping)) or not isinstance(part, Sequence) else part:
            text = entry.get("prompt", "") if isinstance(entry, Mapping) else entry
            if not isinstance(text, str):
                raise ValueError(f"{what}: {key!r} holds {entry!r}, expected text or a round with 'prompt'")
            pieces.append(text)
    return pieces
