"""A model whose layers lie in several places answers as one that lies in one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import autoeval.models.data_parallel
import autoeval.models.hf
import autoeval.models.memory
from autoeval.models.hf import HuggingFaceModel
from autoeval.models.in_place import Renewal, deciding_files, shapes_in, stored_elements
from autoeval.models.loading import load_model
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.tasks.model_configs import build_model
from tests.tiny_models import save_tiny_model

DISK = {
    "gpt2": {
        **{f"transformer.{part}": "cpu" for part in ("wte", "wpe", "drop", "h.0", "ln_f")},
        "transformer.h.1": "disk",
        "lm_head": "cpu",
    },
    "llama": {
        **{f"model.{part}": "cpu" for part in ("embed_tokens", "rotary_emb", "layers.0", "norm")},
        "model.layers.1": "disk",
        "lm_head": "disk",
    },
}


def asked() -> list[LoglikelihoodRequest]:
    draw = random.Random(3)

    def tokens(many: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 290) for _ in range(many))

    head = tokens(20)
    return [LoglikelihoodRequest(head + tokens(number), tokens(1 + number % 3)) for number in range(8)]


def same(here: HuggingFaceModel, there: HuggingFaceModel) -> None:
    requests = asked()
    for one, other in zip(here.loglikelihoods(requests), there.loglikelihoods(requests), strict=True):
        assert list(other.token_logprobs) == pytest.approx(list(one.token_logprobs), abs=1e-4)
    prompts = [GenerationRequest(one.context, 6) for one in requests]
    prompts += [GenerationRequest((20, 30), 4, temperature=1.0, seed=1, min_new_tokens=2)]
    assert [one.tokens for one in there.generate(prompts)] == [one.tokens for one in here.generate(prompts)]
    assert there._network.shares  # the walk, not plain batches
    assert there.cost.computed_tokens == here.cost.computed_tokens


@pytest.mark.parametrize("kind", sorted(DISK))
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_scores_and_texts_do_not_depend_on_where_layers_lie(kind: str, where: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model", kind)
    laid: dict[str, Any] = {"": "cpu"} if where == "cpu" else DISK[kind]
    there = HuggingFaceModel(directory, device_map=laid, offload_folder=tmp_path / "offload")
    assert there.device.type == "cpu"
    if where == "disk":
        assert any(one.device.type == "meta" for one in there.model.parameters())
        assert not Renewal(there, deciding_files(directory)).fits(directory, shapes_in(directory))
    same(HuggingFaceModel(directory, device="cpu"), there)


def test_a_configuration_lays_a_model_out(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model", "llama")
    here = {"type": "HuggingFaceBaseModel", "path": str(directory)}
    kwargs = {"device_map": DISK["llama"], "offload_folder": str(tmp_path / "offload")}
    loaded = build_model({**here, "device": "auto", "model_kwargs": kwargs})
    assert any(one.device.type == "meta" for one in loaded.model.parameters())  # type: ignore[attr-defined]
    plain = build_model({**here, "device": "cpu", "model_kwargs": {"device_map": "auto"}})
    assert str(plain.device) == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="device cpu and a device_map are both given"):
        build_model({**here, "device": "cpu", "model_kwargs": kwargs})
    with pytest.raises(ValueError, match="device_map 7: expected auto"):
        build_model({**here, "model_kwargs": {"device_map": 7}})


def test_free_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be done with GPUs of so much memory: their number and their memory are given, nothing is loaded."""
    directory = save_tiny_model(tmp_path / "model", "llama")
    weights = stored_elements(directory) * 4
    assert weights == sum(one.numel() * 4 for one in HuggingFaceModel(directory, device="cpu").model.parameters())
    made: list[tuple[str, dict[str, Any]]] = []
    for module, name in (
        (autoeval.models.hf, "HuggingFaceModel"),
        (autoeval.models.data_parallel, "DataParallelModel"),
    ):
        monkeypatch.setattr(module, name, lambda path, name=name, **options: made.append((name, options)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {"cuda": 2 * weights, "cpu": 100 * weights}
    monkeypatch.setattr(autoeval.models.memory, "free_bytes", lambda device: free[device.type])
    load_model(directory)
    load_model(directory, devices=1)
    load_model(directory, device="cuda:1")
    free["cuda"] = weights // 2
    load_model(directory)
    room = {0: int(0.75 * free["cuda"]), 1: int(0.75 * free["cuda"]), "cpu": free["cpu"]}
    assert made == [
        ("DataParallelModel", {"devices": ["cuda:0", "cuda:1"]}),
        ("HuggingFaceModel", {"device": "cuda:0"}),
        ("HuggingFaceModel", {"device": "cuda:1"}),
        ("HuggingFaceModel", {"device": "auto", "device_map": "auto", "max_memory": room}),
    ]
    with pytest.raises(ValueError, match="devices 3: this process sees 2 GPUs"):
        load_model(directory, devices=3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("kind", sorted(DISK))
def test_layers_on_two_gpus(kind: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model", kind)
    laid = {name: int("1" in name or "norm" in name) for name in DISK[kind]}
    same(
        HuggingFaceModel(directory, device="cuda:0", dtype="float32"),
        HuggingFaceModel(directory, device_map=laid, dtype="float32"),
    )
