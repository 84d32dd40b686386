"""Loads the data of a pickle without importing or calling anything that the pickle names.

Every class and function becomes an inert record that only remembers what it was given. So a file from a stranger can
at worst be refused. Enough for ``.metadata`` of DCP and for the arguments inside ``model_optim_rng.pt``.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Container
from typing import Any


def load_inert(content: bytes, *, tensors: bool = False, names: Container[str] | None = None) -> Any:
    """Objects of ``content`` with ``Inert`` in place of instances, and subclasses of ``Inert`` in place of classes.

    With ``tensors`` the persistent identifiers with which ``torch.save`` refers to storages become ``None``; without,
    they are refused. ``names`` are the top-level packages, or whole names, that the pickle may mention (None: any,
    they all are inert). Raises what a damaged pickle makes ``pickle`` raise, which can be nearly anything.
    """
    unpickler = _InertUnpickler(io.BytesIO(content))
    unpickler.tensors, unpickler.names = tensors, names
    return unpickler.load()


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
