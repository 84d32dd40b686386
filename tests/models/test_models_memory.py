"""What a pass is predicted to take is never less than what is alive in it."""

from __future__ import annotations

import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.memory import SLACK, pass_bytes
from autoeval.models.requests import LoglikelihoodRequest
from tests.tiny_models import save_tiny_tokenizer

WIDE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
KINDS = {
    "llama": ("llama", WIDE),
    "gpt2": ("gpt2", {"n_embd": 384, "n_layer": 2, "n_head": 6, "vocab_size": 50257}),
    "gemma2": ("gemma2", {**WIDE, "sliding_window": 64}),
}


class Alive(TorchDispatchMode):
    """Bytes of all storages that operations have made and that still live; ``most`` is their highest sum.

    Storages of ``weights``, of which operations give views, are not counted.
    """

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self.tensors: dict[int, int] = {}  # living tensors by storage
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._saw(tensor)
        return made

    def _saw(self, tensor: torch.Tensor) -> None:
        place, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if place in self.weights:
            return
        if place not in self.tensors:
            self.tensors[place] = 0
            self.now += size
            self.most = max(self.most, self.now)
        self.tensors[place] += 1
        weakref.finalize(tensor, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self.tensors[place] -= 1
        if not self.tensors[place]:
            del self.tensors[place]
            self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", ["one long text", "many short ones", "labels after many short ones"])
def test_a_pass_stays_within_its_prediction(kind: str, shape: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    name, settings = KINDS[kind]
    save_tiny_tokenizer(tmp_path)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).save_pretrained(tmp_path)
    model = HuggingFaceModel(tmp_path, device="cpu", max_seq_len=1024, batch_tokens=1024)
    draw = random.Random(0)
    count, length = (1, 1000) if shape == "one long text" else (16, 60)
    texts = [tuple(draw.randrange(2, 290) for _ in range(length)) for _ in range(count)]
    with Alive([*model.model.parameters(), *model.model.buffers()]) as alive:
        asked = -1 if shape.startswith("labels") else 1  # then the last layer is called twice
        model.loglikelihoods([LoglikelihoodRequest(text[:asked], text[asked:]) for text in texts])
    predicted = pass_bytes(model._network, sum(map(len, texts)), length)
    assert alive.most <= predicted - SLACK
    assert predicted < 10 * alive.most + SLACK  # and it is a prediction, not a licence
