"""The last layer is computed for the tokens that are asked for, and nobody can tell from the answers."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from tests.models.test_models_sharing import MODELS, load, naive, naive_text, tokens

WALKING = [name for name, (_, _, walks) in MODELS.items() if walks]


def asked() -> tuple[list[LoglikelihoodRequest], list[GenerationRequest]]:
    """Long contexts with a head in common; of some texts several tokens are asked for, of most one."""
    draw = random.Random(4)
    head = tokens(draw, 30)
    contexts = [head + tokens(draw, 3 + 5 * number) for number in range(6)] + [tokens(draw, 45)]
    scored = [LoglikelihoodRequest(one, tokens(draw, 1 + number)) for number, one in enumerate(contexts)]
    scored += [LoglikelihoodRequest(one, (label,)) for one in contexts for label in (10, 11)]
    grown = [GenerationRequest(one, 1 + number % 4) for number, one in enumerate(contexts)]
    return scored, [*grown, grown[3]]


class Rows:
    """Tokens that the feed-forward of the last layer computes."""

    def __init__(self, model: HuggingFaceModel) -> None:
        layers = next(one for one in model.model.modules() if isinstance(one, torch.nn.ModuleList))
        self.layer: Any = layers[-1]
        self.count = 0
        self.layer.mlp.register_forward_pre_hook(self._saw)

    def _saw(self, _module: Any, given: Any) -> None:
        self.count += given[0].numel() // given[0].shape[-1]


@pytest.mark.parametrize("name", WALKING)
def test_answers_are_those_of_one_request_at_a_time(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    rows = Rows(model)
    scored, grown = asked()
    expected = [naive(model, request) for request in scored]
    texts = [naive_text(model, request) for request in grown]
    for budget in (1024, 40):  # all in one pass; passes that end inside a text, in which nothing is asked for
        model.batch_tokens = budget
        before, rows.count = (model.cost.computed_tokens, model.cost.extra.get("logit_positions", 0)), 0
        for (logprobs, greedy), result in zip(expected, model.loglikelihoods(scored), strict=True):
            assert list(result.token_logprobs) == pytest.approx(logprobs, abs=1e-4)
            assert result.is_greedy == greedy
        computed = model.cost.computed_tokens - before[0]
        if budget == 1024:
            assert rows.count == model.cost.extra["logit_positions"] - before[1] < computed / 2
        assert rows.count < computed
        rows.count, before = 0, (model.cost.computed_tokens, 0)
        assert [list(one.tokens) for one in model.generate(grown)] == texts
        assert rows.count < 0.6 * (model.cost.computed_tokens - before[0])
    assert "forward" not in rows.layer.__dict__


def test_one_token_of_a_long_text_takes_one_row(tmp_path: Path) -> None:
    model = load("llama", tmp_path, batch_tokens=64)
    rows = Rows(model)
    context = tuple(range(2, 122))
    (found,) = model.loglikelihoods([LoglikelihoodRequest(context, (7,))])
    assert rows.count == 2  # one in the pass whose tokens nobody asks for: its keys and values are written down with it
    assert found.logprob == pytest.approx(naive(model, LoglikelihoodRequest(context, (7,)))[0][0], abs=1e-4)


def test_a_layer_that_must_see_all_tokens_sees_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, grown = asked()
    model = load("llama", tmp_path)
    expected, texts = model.loglikelihoods(scored), model.generate(grown)
    layer = type(model.model.get_decoder().layers[-1])
    forward = layer.forward

    seen: dict[int, int] = {}

    def needs_all(self: Any, hidden: torch.Tensor, **named: Any) -> torch.Tensor:
        seen[self.self_attn.layer_idx] = hidden.shape[1]
        if seen[0] != hidden.shape[1]:
            raise RuntimeError("some tokens are missing")
        made: torch.Tensor = forward(self, hidden, **named)
        return made

    monkeypatch.setattr(layer, "forward", needs_all)
    with caplog.at_level(logging.DEBUG, logger="autoeval.models"):
        again = HuggingFaceModel(tmp_path, device="cpu", max_seq_len=128)
    assert "LlamaForCausalLM: its last layer is computed for every token: some tokens are missing" in caplog.text
    assert again._network.shares
    rows = Rows(again)
    before = again.cost.computed_tokens
    for one, other in zip(expected, again.loglikelihoods(scored), strict=True):
        assert other.logprob == pytest.approx(one.logprob, abs=1e-5)
    assert rows.count == again.cost.computed_tokens - before
    assert [one.tokens for one in again.generate(grown)] == [one.tokens for one in texts]


def test_running_out_of_memory_in_the_last_layer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("gpt2", tmp_path, batch_tokens=100)
    scored, _ = asked()
    expected = model.loglikelihoods(scored)
    rows = Rows(model)
    mlp, calls = type(rows.layer.mlp), []
    forward = mlp.forward

    def fails_once(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(self is rows.layer.mlp)
        if sum(calls) == 2 and calls[-1]:
            raise torch.OutOfMemoryError("pretended")
        made: torch.Tensor = forward(self, hidden)
        return made

    monkeypatch.setattr(mlp, "forward", fails_once)
    model.batch_tokens = 60
    again = model.loglikelihoods(scored)
    assert model.batch_tokens == 30 and "forward" not in rows.layer.__dict__
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in expected], abs=1e-5)
