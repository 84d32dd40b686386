"""A checkpoint of a LoRA run is a model wherever a directory is taken: its base with the adapter merged in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from autoeval.checkpoints import SettleTimes, check, detect_format, fingerprint
from autoeval.checkpoints.layout import Tracker
from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import LoglikelihoodRequest
from tests.tiny_models import save_tiny_model

REQUESTS = [LoglikelihoodRequest((40, 41, 42), (43, 44)), LoglikelihoodRequest((60,), (61, 62, 63))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and ``checkpoint-10`` with an adapter whose weights are far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("adapters")
    save_tiny_model(directory / "base", "llama")
    model: Any = AutoModelForCausalLM.from_pretrained(directory / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(directory / "checkpoint-10")
    return directory


def test_an_adapters_directory_answers_as_base_and_adapter_together(world: Path) -> None:
    alone = HuggingFaceModel(world / "checkpoint-10").loglikelihoods(REQUESTS)
    together = HuggingFaceModel(world / "base", peft_path=world / "checkpoint-10").loglikelihoods(REQUESTS)
    base = HuggingFaceModel(world / "base").loglikelihoods(REQUESTS)
    assert [one.token_logprobs for one in alone] == [one.token_logprobs for one in together]
    assert abs(alone[0].logprob - base[0].logprob) > 0.1


def test_an_adapters_directory_is_a_complete_checkpoint_once_its_weights_are_whole(world: Path, tmp_path: Path) -> None:
    settle, now = SettleTimes(), time.time() + 3600
    here = tmp_path / "checkpoint-10"
    here.mkdir()
    (here / "adapter_config.json").write_bytes((world / "checkpoint-10" / "adapter_config.json").read_bytes())

    def state() -> tuple[str, str]:
        ready = check(here, Tracker(None), model_type="huggingface", now=now, settle=settle)
        return ready.state, ready.reason

    assert state() == ("incomplete", "no adapter weights yet")
    weights = (world / "checkpoint-10" / "adapter_model.safetensors").read_bytes()
    (here / "adapter_model.safetensors").write_bytes(weights[:-7])
    assert state()[0] == "incomplete"
    (here / "adapter_model.safetensors").write_bytes(weights)
    assert state() == ("complete", "")
    assert detect_format(here) == "huggingface"
    before = fingerprint(here)
    config = json.loads((here / "adapter_config.json").read_text())
    (here / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert fingerprint(here) != before  # another scale is another model


def test_a_base_that_is_not_here_is_named(world: Path, tmp_path: Path) -> None:
    config = json.loads((world / "checkpoint-10" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(FileNotFoundError, match="/no/such/base"):
        HuggingFaceModel(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="base_model_name_or_path"):
        HuggingFaceModel(tmp_path)
