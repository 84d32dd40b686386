"""What is computed by cheaper steps is the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from autoeval.models.activations import TanhGELU, with_fast_activations
from autoeval.models.projection import MANY, TILE, summarize


def test_gelu_by_the_sigmoid_is_gelu_by_the_tanh() -> None:
    values = torch.cat([torch.linspace(-30, 30, 300_005), torch.tensor([-1e30, -0.0, 1e30])]).view(2, -1, 4)
    kept = values.clone()
    expected = torch.nn.functional.gelu(values.double(), approximate="tanh")
    made = TanhGELU()(values)
    assert torch.equal(values, kept) and made.shape == values.shape
    assert ((made.double() - expected).abs() / (1 + expected.abs())).max() < 5e-7
    assert torch.equal(TanhGELU()(values[:, 1:, ::2]), made[:, 1:, ::2])  # not contiguous
    assert TanhGELU()(torch.tensor([float("nan")])).isnan().all()
    half = values.bfloat16()
    assert torch.equal(TanhGELU()(half), torch.nn.functional.gelu(half, approximate="tanh"))
    learnt = values[:, :9].clone().requires_grad_()
    TanhGELU()(learnt).sum().backward()  # a derivative can be had, as from the layer that it replaces
    assert learnt.grad is not None


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu", "silu", "relu", "gelu_fast"])
def test_only_tanh_gelus_are_replaced(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), ACT2FN[name])
    before = type(model[1])
    after = type(with_fast_activations(model)[1])
    assert after is (TanhGELU if name in ("gelu_new", "gelu_pytorch_tanh") else before)


@pytest.mark.parametrize("count", [3, MANY + 3])
def test_the_likeliest_token_is_the_first_of_equals(count: int) -> None:
    """However many rows: their best tokens, in whatever tile, and where several are equal, the first."""
    torch.manual_seed(0)
    words = 2 * TILE["cpu"] + 77
    projection = torch.nn.Linear(8, words, bias=False)
    network: Any = SimpleNamespace(projection=projection, split=True, finish=lambda x: x, to_head=lambda x: x)
    with torch.inference_mode():
        projection.weight[[words - 1, TILE["cpu"] + 5]] = projection.weight[[40, 40]] * 3  # two equal words
        hidden = torch.cat([projection.weight[40][None], -projection.weight[40][None], torch.randn(count - 2, 8)])
        hidden[-1] = 0  # all words are equal
        targets = torch.arange(count) % words
        summary, picked = summarize(network, hidden, torch.arange(count), targets)
        logits = projection(hidden).double()
    assert summary.best.tolist()[0] == TILE["cpu"] + 5 and summary.best.tolist()[-1] == 0
    assert torch.equal(summary.best, logits.argmax(dim=-1))
    assert torch.allclose(summary.log_total.double(), logits.logsumexp(dim=-1), atol=1e-5)
    assert torch.allclose(picked.double(), logits[torch.arange(count), targets], atol=1e-6)
