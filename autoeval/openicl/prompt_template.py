"""Prompt templates, in OpenICL's terms: a string, one per label, or a meta template of rounds.

A template and a row give *turns*: text, each with the role that says it (``HUMAN``, ``BOT``, ``SYSTEM``) or with none.
How turns become one prompt is the model's matter: ``autoeval.openicl.styles``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

META_KEYS = frozenset({"begin", "round", "end"})
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Turn:
    """``begin`` and ``end``, where given, replace the role's own. ``section``: begin, round, end or ice."""

    text: str
    role: str | None = None
    fallback_role: str | None = None  # for a model that does not know ``role``
    begin: str | None = None
    end: str | None = None
    section: str = "round"


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
        self.by_label: dict[Any, list[Turn]] | None = None
        self.pieces: list[Turn] = []
        if isinstance(template, Mapping) and not set(template) <= META_KEYS:
            self.by_label = {label: _pieces(part, f"label {label!r}") for label, part in template.items()}
        else:
            self.pieces = _pieces(template, "template")
        self.is_meta = any(
            isinstance(part, Mapping)
            for part in (template.values() if isinstance(template, Mapping) and self.by_label else [template])
        )
        parts = list(self.by_label.values()) if self.by_label is not None else [self.pieces]
        if ice_token and not all(any(ice_token in piece.text for piece in part) for part in parts):
            raise ValueError(f"the ice_token {ice_token!r} is not in every template: examples would be lost")

    @property
    def labels(self) -> list[Any] | None:
        return None if self.by_label is None else list(self.by_label)

    def turns(
        self, columns: Mapping[str, Any], *, label: Any = None, ice: Sequence[Turn] = (), keep_sep: bool = False
    ) -> list[Turn]:
        """The turns of one row. ``label`` selects the template when there is one per label.

        The examples are inserted after formatting, so braces in them are safe. Examples with roles stand for the piece
        that is their token; within a piece of more text they are text too.
        """
        pieces = self.pieces if self.by_label is None else self._of_label(label)
        made: list[Turn] = []
        for piece in pieces:
            text = piece.text
            if self.sep_token and not keep_sep:
                text = text.replace(self.sep_token, "")
            if self.ice_token and text == self.ice_token:
                made.extend(replace(turn, section="ice") for turn in ice)
            elif self.ice_token and self.ice_token in text:
                inline = "\n".join(turn.text for turn in ice)
                parts = [safe_format(part, columns) for part in text.split(self.ice_token)]
                made.append(replace(piece, text=inline.join(parts)))
            else:
                made.append(replace(piece, text=safe_format(text, columns)))
        return made

    def _of_label(self, label: Any) -> list[Turn]:
        assert self.by_label is not None
        for known, pieces in self.by_label.items():
            if str(known) == str(label):  # JSON's "1" and Python's 1 are one label
                return pieces
        raise ValueError(f"there is no template for label {label!r} (there are: {', '.join(map(str, self.by_label))})")


def _pieces(template: Any, what: str) -> list[Turn]:
    """A string is one piece; of a meta template every part and round is one."""
    if isinstance(template, str):
        return [Turn(template)]
    if not isinstance(template, Mapping) or not set(template) <= META_KEYS:
        raise ValueError(f"{what}: expected a string or a mapping with begin, round, end; found {template!r}")
    pieces: list[Turn] = []
    for key in ("begin", "round", "end"):
        part = template.get(key, [])
        for entry in [part] if isinstance(part, (str, Mapping)) or not isinstance(part, Sequence) else part:
            pieces.append(_turn(entry, key, what))
    return pieces


def _turn(entry: Any, section: str, what: str) -> Turn:
    options = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(options, Mapping) or not isinstance(options.get("prompt", ""), str):
        raise ValueError(f"{what}: {section!r} holds {entry!r}, expected text or a round with 'prompt'")
    known = {key: options.get(key) for key in ("role", "fallback_role", "begin", "end")}
    return Turn(options.get("prompt", ""), section=section, **known)
