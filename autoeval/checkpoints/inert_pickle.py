"""Loads the data of a pickle without importing or calling anything that the pickle names.

Every class and function becomes an inert record that only remembers what it was given. So a file from a stranger can
at worst be refused. Enough for ``.metadata`` of DCP and for the arguments inside ``model_optim_rng.pt``.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Container
from typing import Any


def load_inert(content: bytes, *, tensors: bool = False, names: Container[str] | None = None) -> Any:
    """Objects of ``content`` with ``Inert`` in place of instances, and subclasses of ``Inert`` in place of classes.

    With ``tensors`` the persistent identifiers with which ``torch.save`` refers to storages become ``None``; without,
    they are refused. ``names`` are the top-level packages, or whole names, that the pickle may mention (None: any,
    they all are inert). Raises what a damaged pickle makes ``pickle`` raise, which can be nearly anything.
    """
    refuse_far_memo(content)
    unpickler = _InertUnpickler(io.BytesIO(content))
    unpickler.tensors, unpickler.names = tensors, names
    return unpickler.load()


_WIDTHS = {ord(one.code): 0 if one.arg is None else one.arg.n for one in pickletools.opcodes}
_COUNTED = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4}
_COUNTED |= {pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_PUT, _LONG_PUT, _STOP = ord("p"), ord("r"), ord(".")


def _fixed() -> re.Pattern[bytes]:
    """As many operations as there are whose length is fixed and which put nothing far away."""
    by_width: dict[int, bytes] = {}
    for code, width in _WIDTHS.items():
        if width >= 0 and code not in (_LONG_PUT, _STOP):
            by_width[width] = by_width.get(width, b"") + re.escape(bytes([code]))
    kinds = (b"[%b].{%d}" % (codes, width) for width, codes in by_width.items())
    return re.compile(b"(?:" + b"|".join(kinds) + b"){1,4096}", re.DOTALL)


_FIXED = _fixed()


def refuse_far_memo(content: bytes) -> None:
    """Raises ``pickle.UnpicklingError`` when something would be remembered under a number that no such pickle can need.

    The unpickler makes room for all smaller numbers, 16 bytes each: eleven bytes could take 64 GiB. (CPython, issue
    115952.) What is damaged otherwise is for the unpickler to say.
    """
    at, end, furthest = 0, len(content), len(content) // 2
    while at < end:
        if found := _FIXED.match(content, at):
            at = found.end()
            continue
        if content[at] == _STOP or content[at] not in _WIDTHS:
            return
        code, start = content[at], at + 1
        if code == _LONG_PUT:
            width, index = 4, int.from_bytes(content[start : start + 4], "little")
        elif (counted := _COUNTED.get(_WIDTHS[code])) is not None:
            width, index = counted + int.from_bytes(content[start : start + counted], "little"), 0
        else:
            width, index = _line(content, code, start)
        if index > furthest:
            raise pickle.UnpicklingError(f"it remembers something as number {index}, in {end} bytes")
        at = start + width


def _line(content: bytes, code: int, start: int) -> tuple[int, int]:
    """(length, number under which something is put) of an operation in text: one line, two that name a class."""
    line = content.find(b"\n", start) + 1 or len(content)
    text = content[start:line].strip()
    if code == _PUT:
        return line - start, int(text or b"0") if (text or b"0").isdigit() and len(text) < 20 else len(content)
    if code in b"ci":  # GLOBAL and INST: module, then name
        line = content.find(b"\n", line) + 1 or len(content)
    return line - start, 0


class Inert:
    """Stands for an instance of any class: remembers the arguments and the state, does nothing."""

    __slots__ = ("arguments", "entries", "state")
    arguments: tuple[Any, ...]
    entries: list[Any]
    state: Any
    qualified_name = ""

    def __new__(cls, *arguments: Any, **_keywords: Any) -> Inert:
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = None
        made.entries = []
        return made

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        self.entries.append(value)

    def extend(self, values: Any) -> None:
        self.entries.extend(values)

    add = append


def _forget(_self: Any, _state: Any) -> None:
    """A state dict's OrderedDict carries ``_metadata`` as an attribute: of no use here."""


class _InertUnpickler(pickle.Unpickler):
    tensors = False
    names: Container[str] | None = None

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream)
        # Made anew for each file, so that nothing a file does to a class outlives its reading.
        self._classes: dict[tuple[str, str], type] = {
            ("torch", "Size"): tuple,
            ("collections", "OrderedDict"): type("Dict", (dict,), {"__setstate__": _forget}),
        }

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key not in self._classes:
            qualified = f"{module}.{name}"
            if self.names is not None and module.partition(".")[0] not in self.names and qualified not in self.names:
                raise pickle.UnpicklingError(f"refused, because it names {qualified}; nothing of it was run")
            self._classes[key] = type("Inert", (Inert,), {"__slots__": (), "qualified_name": qualified})
        return self._classes[key]

    def persistent_load(self, _identifier: Any) -> Any:
        if self.tensors:
            return None
        raise pickle.UnpicklingError("persistent identifiers do not belong here")
