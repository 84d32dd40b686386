"""Looking something up by a name from a configuration, with help when it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def class_name(type_: Any) -> str:
    """The last part of a ``type`` in a configuration: a name, a dotted path, or a class (mmengine's lazy ones too)."""
    if isinstance(type_, type):
        return type_.__name__
    return str(type_).rsplit(".", 1)[-1]


def look_up(table: Mapping[str, T], type_: Any, kind: str) -> T:
    """``table[class_name(type_)]``; raises ``ValueError`` naming the nearest known name."""
    name = class_name(type_)
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown {kind} '{name}'{hint} (known: {', '.join(sorted(table))})")
