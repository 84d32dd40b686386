"""Making everything in this process that would use the network fail at once, by its environment.

Libraries download what is missing with urllib, ``wget``, ``gdown`` or the Hugging Face hub, and on a machine without
network some of them wait for minutes. The proxy variables point at a port of this machine where nothing
listens, and the hub is in its offline mode.
"""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.request
from collections.abc import Iterator

DEAD_PROXY = "http://127.0.0.1:9"  # the discard port; refused at once
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
OFFLINE_VARIABLES = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@contextlib.contextmanager
def offline(*reachable: str) -> Iterator[None]:
    """Inside the block nothing reaches the network but this machine and the hosts in ``reachable``.

    The environment is as before afterwards.
    """
    changes: dict[str, str | None] = dict.fromkeys(_PROXY_VARIABLES, DEAD_PROXY)
    changes |= OFFLINE_VARIABLES
    changes |= dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join((*_THIS_MACHINE, *reachable)))
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    urllib.request.install_opener(None)  # the next call builds one that sees the proxies
    flags = _set_offline_flags()
    try:
        yield
    finally:
        for module, value in flags:
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]  # looked for by name above
        _set_environment(before)
        urllib.request.install_opener(None)


def keep_off_the_hub() -> None:
    """For the life of this process, before libraries are imported: otherwise they try the hub first, and wait."""
    for name, value in OFFLINE_VARIABLES.items():
        os.environ.setdefault(name, value)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _set_offline_flags() -> list[tuple[object, bool]]:
    """Libraries that read ``HF_HUB_OFFLINE`` when imported, and are already: (module, the flag's value before)."""
    changed: list[tuple[object, bool]] = []
    for name in ("huggingface_hub.constants", "datasets.config"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "HF_HUB_OFFLINE"):
            changed.append((module, module.HF_HUB_OFFLINE))
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010 - a module attribute mypy cannot know
    return changed
