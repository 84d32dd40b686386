"""All segments in one call of attention give what one call each gives."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from autoeval.models.hf import HuggingFaceModel, dtype_of
from autoeval.models.packed import BLOCK, Packed
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.models.trie import Walk, key_of
from tests.models.test_models_architectures import ARCHITECTURES
from tests.tiny_models import save_tiny_model, save_tiny_tokenizer


def texts(seed: int, heads: int, most: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)

    def tokens(many: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 290) for _ in range(many))

    found = set()
    for head in [tokens(most // 2) for _ in range(heads)]:
        for question in [head[: draw.randrange(1, len(head))] + tokens(5) for _ in range(4)]:
            found |= {question + tokens(draw.randrange(1, most // 4)) for _ in range(3)}
    return sorted(found)


def load(kind: str, directory: Path) -> HuggingFaceModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    if kind in ("gpt2", "llama"):
        return HuggingFaceModel(save_tiny_model(directory, kind), device="cpu")
    save_tiny_tokenizer(directory)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind])).save_pretrained(directory)
    return HuggingFaceModel(directory, device="cpu")


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention as it is written: else it is traced again for every new shape, which takes seconds each."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


# A soft cap and windows (gemma2), windows and shared keys (mistral).
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "mistral"])
def test_packed_is_the_walk(kind: str, tmp_path: Path, untraced: None) -> None:
    model = load(kind, tmp_path)
    network = model._network
    assert network.shares and not network.packed  # on a CPU it is not chosen
    scored = [LoglikelihoodRequest(text[:-3], text[-3:]) for text in texts(1, 2, 40)]
    grown = [GenerationRequest(text[:-4], 3) for text in texts(2, 1, 40)]
    grown += [GenerationRequest(grown[0].prompt, 4), GenerationRequest(grown[1].prompt, 1)]
    for budget in (50, 400):  # passes that begin inside a text, and one with nearly all
        model.batch_tokens = budget
        network.packed = False
        expected, written = model.loglikelihoods(scored), model.generate(grown)
        before = model.cost.computed_tokens
        network.packed = True
        for one, other in zip(expected, model.loglikelihoods(scored), strict=True):
            assert list(other.token_logprobs) == pytest.approx(list(one.token_logprobs), abs=1e-4)
            assert other.is_greedy == one.is_greedy
        assert [one.tokens for one in model.generate(grown)] == [one.tokens for one in written]
        assert model.cost.computed_tokens <= before * 2
        network.packed = False


def test_the_rule_is_that_of_ancestors_block_by_block() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    rows = texts(3, 5, 100)
    walk = Walk([key_of(row) for row in rows])
    first = walk.size // 3
    segments = walk.segments(first, walk.size)
    starts = np.cumsum([0, *(one.length for one in segments)])
    plan = Packed([(int(at), one.depth, one.length) for at, one in zip(starts, segments, strict=False)])
    assert plan.tokens == walk.size - first > 2 * BLOCK and plan.old
    mask = plan.mask(None, torch.device("cpu"))
    own = np.concatenate([np.full(one.length, one.row) for one in segments])
    depths = plan.places[plan.old :]
    for query in range(0, plan.tokens, 3):
        seen = np.flatnonzero((plan.born <= query) & (query < plan.until))
        assert sorted(plan.places[seen]) == list(range(depths[query] + 1))  # each place once, and itself
        for key in seen:
            if key >= plan.old:  # the same beginning
                end = plan.places[key] + 1
                other = walk.rows[own[key - plan.old]]
                assert np.array_equal(other[:end], walk.rows[own[query]][:end])
    whole = create_block_mask(mask.mask_mod, None, None, *mask.seq_lengths, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(mask.to_dense().bool(), whole.to_dense().bool())
    assert mask.to_dense().float().mean() < 1  # some blocks are left out


def test_what_a_checkpoint_does_not_say_is_bf16_on_a_gpu() -> None:
    from transformers import LlamaConfig

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    silent, stored = LlamaConfig(), LlamaConfig(dtype="float16")
    assert dtype_of(silent, "auto", gpu) == torch.bfloat16 and dtype_of(silent, "auto", cpu) == torch.float32
    assert dtype_of(stored, "auto", gpu) == torch.float16 and dtype_of(stored, "auto", cpu) == torch.float32
    assert dtype_of(stored, "float32", gpu) == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_packs_and_gives_the_same(dtype: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tiny_tokenizer(tmp_path)
    wide = {
        **ARCHITECTURES["mistral"],
        "hidden_size": 256,
        "sliding_window": None,
    }  # heads of 64: the kernel has a least
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **wide)).save_pretrained(tmp_path)
    model = HuggingFaceModel(tmp_path, device="cuda", dtype=dtype)
    assert model._network.packed
    asked = [LoglikelihoodRequest(text[:-3], text[-3:]) for text in texts(1, 3, 60)]
    packed = model.loglikelihoods(asked)
    model._network.packed = False
    for one, other in zip(packed, model.loglikelihoods(asked), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3 if dtype == "float32" else 0.5)
