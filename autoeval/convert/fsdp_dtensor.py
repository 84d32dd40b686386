"""The ``fsdp_dtensor`` (Megatron-FSDP) and ``torch_dcp`` (FSDP2) layouts: a distributed checkpoint without
``metadata.json``, whose keys are those of the state dict: ``model.…``, ``optimizer.…``, ``args``, ``iteration``.

Tensors are stored whole whatever sharded them, one per layer and expert, numbered globally; Megatron-FSDP keeps
SwiGLU's halves apart (``linear_fc1.weight_w`` gate, ``_v`` up). Format: shared/reference/megatron.md, section 3.3, and
megatron-core's ``fsdp_dtensor_checkpoint.py``. Tested on checkpoints that PyTorch's DCP wrote under these keys;
Megatron-FSDP itself needs GPUs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from autoeval.convert.dcp_store import DcpStore
from autoeval.convert.errors import ConversionError
from autoeval.convert.names import is_weight
from autoeval.convert.run_config import read_run_config
from autoeval.convert.source import LastRead
from autoeval.convert.torch_dist import EMBEDDING, name_all

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = re.compile(r"^model\.(module\.)*")


class FsdpDtensorSource(LastRead):
    """``args`` is a stored item; where Megatron-Bridge trained, ``run_config.yaml`` has them."""

    layout = "fsdp_dtensor"

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._store = DcpStore(path)
        keys = {_PREFIX.sub("", key): key for key in self._store.tensors if _PREFIX.match(key)}
        if not keys:
            raise ConversionError(
                f"{path}: .metadata without metadata.json, and no key begins with 'model.': neither torch_dcp nor "
                "fsdp_dtensor; a torch_dist save that has not finished?"
            )
        self._places = name_all(self._store, {name: key for name, key in keys.items() if is_weight(name)})
        self._names = frozenset(self._places)
        self.args = self._read_args(keys.get(EMBEDDING))

    def _read(self, name: str) -> Tensor:
        return self._store.read(self._places[name])

    def _read_args(self, embedding: str | None) -> argparse.Namespace:
        args = self._store.object("args") if "args" in self._store else None
        if isinstance(args, argparse.Namespace):
            return args
        if embedding is None:
            raise ConversionError(f"{self.path}: no training arguments ('args') and no {EMBEDDING}")
        return read_run_config(self.path, self._store.tensors[embedding].shape[0])
