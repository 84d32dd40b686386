"""Which form a model takes: on one device, whole on each of several (``data_parallel``), or its layers over several.

The second is for a model that fits one device when there are more; the third for one that fits none.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def load_model(path: Path | str, *, device: str = "auto", devices: int | str = "auto", **options: Any) -> Any:
    """A ``HuggingFaceModel``, or a ``DataParallelModel`` where there are several devices and the model fits one.

    ``device``: as ``HuggingFaceModel`` takes it. ``devices``: how many may be used. ``auto`` is all GPUs that this
    process sees, and one where there is none or ``device`` names one; a number on ``device: cpu`` is so many processes
    that share the threads. ``options`` are ``HuggingFaceModel``'s others. Raises ``ValueError`` for devices that are not
    here, and what the model's class raises.
    """
    from autoeval.models.hf import HuggingFaceModel

    places = _places(device, devices)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such model directory")
    if options.get("device_map") is None and (len(places) > 1 or (device == "auto" and places[0] != "cpu")):
        if _fits(Path(path), places, options):
            return _whole(path, places, options)
        if places[0] != "cpu":
            logger.info("%s: its layers are laid over %s (device_map auto)", path, ", ".join(places))
            options["device_map"], options["max_memory"] = "auto", options.get("max_memory") or _room(places)
        else:
            logger.warning("%s: loaded by one process instead of %d", path, len(places))
    return HuggingFaceModel(path, device=device, **options)


def _whole(path: Path | str, places: list[str], options: dict[str, Any]) -> Any:
    """On each of ``places`` the whole model."""
    from autoeval.models.data_parallel import DataParallelModel
    from autoeval.models.hf import HuggingFaceModel

    if len(places) == 1:
        return HuggingFaceModel(path, device=places[0], **options)
    return DataParallelModel(path, devices=places, **options)


def _places(device: str, devices: int | str) -> list[str]:
    """A device for each process; one name where there is to be one process."""
    import torch

    if devices != "auto" and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
        raise ValueError(f"devices {devices!r}: expected auto or a positive number")
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not here):
        return ["cpu"] * (1 if devices == "auto" else int(devices))
    if device not in ("auto", "cuda"):
        if devices not in ("auto", 1):
            raise ValueError(f"devices {devices}: device {device} is a single one; expected device: auto, cuda or cpu")
        return [device]
    count = here if devices == "auto" else int(devices)
    if count > here:
        raise ValueError(f"devices {count}: this process sees {here} GPUs (CUDA_VISIBLE_DEVICES)")
    return [f"cuda:{number}" for number in range(count)]


def _fits(path: Path, places: list[str], options: dict[str, Any]) -> bool:
    """Whether the weights leave room for passes and caches on each of ``places``; on the CPU they share one memory."""
    import torch
    from transformers import AutoConfig

    from autoeval.models.adapter import base_of, is_adapter
    from autoeval.models.hf import dtype_of
    from autoeval.models.in_place import stored_elements
    from autoeval.models.memory import free_bytes

    directory = base_of(path) if is_adapter(path) else path
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    item = dtype_of(config, options.get("dtype", "auto"), torch.device(places[0])).itemsize
    copies = places.count("cpu") or 1
    weights = stored_elements(directory) * item * copies
    for place in dict.fromkeys(places):
        if weights > (free := free_bytes(torch.device(place))):
            text = "%s: weights of %.1f GB (%d times) do not fit what may be taken of %s: %.1f GB"
            logger.info(text, path, weights / copies / 1e9, copies, place, free / 1e9)
            return False
    return True


def _room(places: list[str]) -> dict[int | str, int]:
    """What weights may take, by accelerate's names: of each GPU what leaves room for caches, then of the CPU."""
    import torch

    from autoeval.models.memory import free_bytes

    devices: list[Any] = [torch.device(place) for place in places]
    room: dict[int | str, int] = {one.index: int(0.75 * free_bytes(one)) for one in devices}
    return {**room, "cpu": free_bytes(torch.device("cpu"))}
