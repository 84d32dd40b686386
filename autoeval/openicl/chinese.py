"""jieba, which cuts Chinese into words, with its cache where nobody else can write."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any


@functools.cache
def jieba() -> Any:
    """The module. By itself it believes ``/tmp/jieba.cache``, which any user of the machine may have put there: marshalled
    data, which can crash the process or change how every text is cut. Ours is in ``$AUTOEVAL_CACHE`` (``~/.cache/autoeval``).
    """
    import jieba as module

    cache = Path(os.environ.get("AUTOEVAL_CACHE", Path.home() / ".cache" / "autoeval"), "jieba")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    module.dt.tmp_dir = str(cache)
    module.setLogLevel("WARNING")  # it tells of its dictionary otherwise
    return module
