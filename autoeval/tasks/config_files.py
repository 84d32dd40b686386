"""Configuration files: Python in mmengine's syntax. They are executed: they are the user's own code, like any script."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_python(file: Path) -> dict[str, Any]:
    """The variables of ``file``; ``read_base`` works, and so do files that import from ``opencompass``.

    Raises ``ValueError`` naming the file.
    """
    from mmengine.config import Config

    try:
        with _standard_library_known():
            return dict(Config.fromfile(str(file)).to_dict())
    except Exception as error:  # the file is executed: any exception is its own
        raise ValueError(f"{file}: cannot be read as a configuration: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _standard_library_known() -> Iterator[None]:
    """mmengine imports the standard library and leaves all else names; it tells them by where they lie.

    Since Python 3.11 ``os`` and others are frozen and lie nowhere, and ``os.path.join(...)`` in a file is an error.
    """
    from mmengine.config import config, utils

    by_place = utils._is_builtin_module

    def known(name: str) -> bool:
        return name.partition(".")[0] in sys.stdlib_module_names or bool(by_place(name))

    for module in (config, utils):
        module._is_builtin_module = known
    try:
        yield
    finally:
        for module in (config, utils):
            module._is_builtin_module = by_place
