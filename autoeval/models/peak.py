"""The most memory that was held: on a GPU by tensors, else by the process. Imports torch only where there is a GPU's model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")  # writing 5 makes the present size the peak


def forget_peak(model: Any) -> None:
    """From here on counts what ``model`` holds. A model in several processes forgets in each of them."""
    if hasattr(model, "forget_peak"):
        model.forget_peak()
    elif gpus := _gpus(model):
        import torch

        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
    else:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: then it is the peak since the process began
            _RESET.write_text("5", encoding="ascii")


def peak_bytes(model: Any) -> float:
    """Since ``forget_peak``, over all devices and processes of ``model``."""
    if hasattr(model, "peak_bytes"):
        return float(model.peak_bytes())
    if gpus := _gpus(model):
        import torch

        return float(sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus))
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0.0


def _gpus(model: Any) -> list[Any]:
    if getattr(getattr(model, "device", None), "type", "cpu") != "cuda":
        return []
    module = getattr(model, "model", None)
    held = {one.device for one in module.parameters() if one.device.type == "cuda"} if module is not None else set()
    return sorted(held or {model.device}, key=str)
