"""Architectures that are not GPT-2 or Llama: soft-capped logits, sliding windows, ALiBi, experts, state spaces."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from tests.tiny_models import save_tiny_tokenizer

ENDS = {"bos_token_id": 0, "eos_token_id": 1}
LLAMA_LIKE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    **ENDS,
}
SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, **ENDS}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma2": {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 16},
    "mistral": {**LLAMA_LIKE, "sliding_window": 16},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {**LLAMA_LIKE, "logits_scaling": 8.0},
    "gpt_neox": {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"},
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, **ENDS},
    "mamba": {**SMALL, "state_size": 4},
}


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_scores_and_texts_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tiny_tokenizer(tmp_path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind])).save_pretrained(tmp_path)
    model = HuggingFaceModel(tmp_path, device="cpu", max_seq_len=128)
    draw = random.Random(1)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 290) for _ in range(draw.randrange(1, most)))

    asked = [LoglikelihoodRequest(tokens(40), tokens(8)) for _ in range(12)]
    for request, result in zip(asked, model.loglikelihoods(asked), strict=True):
        with torch.no_grad():
            table = model.model(torch.tensor([request.context + request.continuation])).logits[0].log_softmax(-1)
        places = range(len(request.context) - 1, len(request.context) + len(request.continuation) - 1)
        expected = [float(table[place, token]) for place, token in zip(places, request.continuation, strict=True)]
        assert list(result.token_logprobs) == pytest.approx(expected, abs=1e-4)
    written = model.generate([GenerationRequest(request.context, 8) for request in asked])
    for request, made in zip(asked, written, strict=True):
        prompt = torch.tensor([request.context])
        mask = torch.ones_like(prompt)
        whole = model.model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        own = [token for token in whole[0, len(request.context) :].tolist() if token not in model.stop_ids]
        assert list(made.tokens) == own
