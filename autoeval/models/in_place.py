"""Another checkpoint's weights into the module that is loaded already: nothing is imported, built or allocated anew.

    files = deciding_files(model.path)   # when it is loaded: later they may be gone
    renewal = Renewal(model, files)
    if renewal.fits(directory, shapes_in(directory)):
        renewal.read(directory)       # or renewal.put(...) for tensors as they come
        renewal.done(directory)

Only weights may differ. Configuration and tokenizer must be the same to the byte, and the tensors in the files must be
the module's own by name and shape; a mixture whose experts transformers fuses, say, is loaded afresh by its caller.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoeval.models.adapter import is_adapter
from autoeval.models.network import Network
from autoeval.models.requests import Cost
from recorder.untrusted import parse_json

logger = logging.getLogger(__name__)

# All that decides what a model computes besides its weights.
_DECIDING = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "*.tiktoken", "chat_template*",
)  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


def deciding_files(directory: Path) -> str | None:
    """A hash of a model directory's files but its weights; none for an adapter, whose model is elsewhere."""
    if is_adapter(directory):
        return None
    found = {path for pattern in _DECIDING for path in directory.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def shapes_in(directory: Path) -> Shapes | None:
    """The shapes of the tensors in a directory's safetensors files; ``None`` where weights are kept otherwise."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(directory) or ():
        with safe_open(path, framework="pt") as stored:
            shapes |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - not a dict
    return shapes or None


def stored_elements(directory: Path) -> int:
    """Numbers in a model directory's weight files: of safetensors counted, of others by their size at 2 bytes each,
    which is rather too many than too few."""
    shapes = shapes_in(directory)
    if shapes is not None:
        return sum(math.prod(shape) for shape in shapes.values())
    return sum(path.stat().st_size for path in directory.glob("*.bin")) // 2


class Renewal:
    """The parameters of ``model`` (a ``HuggingFaceModel`` whose ``deciding_files`` were ``files``) by the names that its
    files have.

    From the first ``put`` to ``done`` the model is neither the old one nor the new one and must not be asked.
    """

    def __init__(self, model: Any, files: str | None) -> None:
        self._model, self._files = model, files
        # The order of a state dict: of tied weights the first name is the one that files have.
        self._targets: dict[str, torch.Tensor] = dict(model.model.state_dict())

    def fits(self, directory: Path, shapes: Shapes | None) -> bool:
        """Whether tensors of these shapes, with the other files of ``directory``, are a checkpoint of the same model.
        The log says why not."""
        reason = self._why_not(directory, shapes)
        if reason is not None:
            logger.info("%s: loaded afresh: %s", directory, reason)
        return reason is None

    def _why_not(self, directory: Path, shapes: Shapes | None) -> str | None:
        if self._files is None or shapes is None:
            return "weights can be put in place from safetensors files of a whole model only"
        if deciding_files(directory) != self._files:
            return "its configuration or tokenizer is another one"
        for name, shape in shapes.items():
            target = self._targets.get(name)
            if target is None or tuple(target.shape) != shape:
                return f"the module has no tensor {name} of the shape {shape}"
            if target.device.type == "meta" or not target.is_contiguous():
                return f"the module's {name} is not in memory as it is in the file"
        given = {self._targets[name].data_ptr() for name in shapes}
        missing = [name for name, target in self._targets.items() if target.data_ptr() not in given]
        return f"there is no {missing[0]} in it" if missing else None

    def put(self, name: str, start: int, values: torch.Tensor) -> None:
        """Elements ``start`` and following of the tensor ``name``, in the order of memory; cast to the module's dtype."""
        flat = self._targets[name].view(-1)
        with torch.inference_mode():
            flat[start : start + values.numel()].copy_(values.view(-1))

    def read(self, directory: Path) -> None:
        """All tensors from the files of ``directory``. Raises ``OSError`` or ``SafetensorError``."""
        from safetensors import safe_open

        for path in _weight_files(directory) or ():
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    self.put(name, 0, stored.get_tensor(name))

    def done(self, directory: Path) -> None:
        """The weights are those of ``directory``: the model answers for it, and its cost counts from zero."""
        self._model.path = directory
        self._model.cost = Cost()
        self._model._network = Network(self._model.model)  # looks at the model again: nothing of the old one is left


def _weight_files(directory: Path) -> list[Path] | None:
    """The safetensors files that transformers would read; ``None`` when it would read others, or none are there."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if not index.is_file():
        return None
    names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        return None  # what loads it afresh refuses it
    return [directory / name for name in sorted(names)]
