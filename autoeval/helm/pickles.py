"""Pickles that HELM opens (xsum, cnndm), looked at before: a pickle can run code, and nobody has to have meant it well.

Data needs only the types that the format has opcodes for (dictionaries, lists, strings, numbers). Everything else goes
by the name of a class or function, and none is looked up here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

_ENDINGS = (".pk", ".pkl", ".pickle")


class UnsafePickleError(ValueError):
    """A pickle that is not just data; the message names the file and what it asks for."""


class _OnlyData(pickle.Unpickler):
    """Loads containers, strings and numbers, and looks no name up."""

    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickleError(f"it asks for {module}.{name}")

    def persistent_load(self, identifier: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside itself")


def refuse_unsafe_pickles(directory: Path) -> None:
    """Look at every pickle under ``directory`` (which need not exist).

    Raises ``UnsafePickleError`` for one that holds more than dictionaries, lists, strings and numbers, or that is broken.
    """
    for path in sorted(path for path in directory.rglob("*") if path.suffix in _ENDINGS and path.is_file()):
        try:
            with path.open("rb") as stream:
                _OnlyData(stream).load()
        except Exception as error:  # a broken pickle raises whatever its bytes lead to
            raise UnsafePickleError(
                f"{path}: not opened, because HELM would unpickle it: {error}; expected a pickle of dictionaries, lists, "
                "strings and numbers only, as HELM publishes it"
            ) from error
