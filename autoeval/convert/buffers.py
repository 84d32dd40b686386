"""Memory for tensors that are read, written and forgotten one after another, used again instead of returned.

Pages that a process touches for the first time cost far more than what is copied into them, on virtual machines most of
all: without this, most of a conversion's processor time went there (benchmarks/convert.py).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

LEAST_BYTES = 1024**2  # below, the allocator itself keeps what is freed
KEPT_BYTES = 256 * 1024**2

_free: list[np.ndarray[Any, Any]] = []
_returned: deque[np.ndarray[Any, Any]] = deque()  # apart, because a tensor's end may come at any moment, also in _take
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty`` on the CPU. The memory is free for another tensor when the last view of this one is gone."""
    import torch

    size = torch.Size(shape).numel() * dtype.itemsize
    if size < LEAST_BYTES:
        return torch.empty(shape, dtype=dtype)
    buffer = _take(size)
    part = buffer[:size]
    weakref.finalize(part, _returned.append, buffer).atexit = False
    return torch.from_numpy(part).view(dtype).view(shape)


def release() -> None:
    """Return to the system what no tensor uses."""
    with _lock:
        _returned.clear()
        _free.clear()


def _take(size: int) -> np.ndarray[Any, Any]:
    with _lock:
        while _returned:
            _free.append(_returned.popleft())
        while sum(one.size for one in _free) > KEPT_BYTES:
            del _free[0]  # the one that was not wanted for the longest time
        fitting = [place for place, buffer in enumerate(_free) if size <= buffer.size <= 2 * size]
        if fitting:
            return _free.pop(min(fitting, key=lambda place: _free[place].size))
    return np.empty(size, dtype=np.uint8)
