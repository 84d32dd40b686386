"""Meta's own weights: the converted model's logits are those of Meta's formulas on the original tensors."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.tasks.model_configs import build_model
from autoeval.tasks.stored import model_identity

TOKENIZER = (
    Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    / "tokenizers/sentencepiece/test_model.model"
)
DIM, HEADS, KV_HEADS, LAYERS, HIDDEN = 32, 4, 2, 2, 48
HEAD = DIM // HEADS
EPSILON = 1e-5

pytestmark = pytest.mark.skipif(not TOKENIZER.is_file(), reason=f"no sentencepiece model at {TOKENIZER}")


def weights(vocabulary: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    made = {"tok_embeddings.weight": random(vocabulary, DIM), "output.weight": random(vocabulary, DIM)}
    made |= {"norm.weight": 1 + random(DIM), "rope.freqs": random(HEAD // 2)}
    for layer in range(LAYERS):
        made |= {
            f"layers.{layer}.attention.wq.weight": random(DIM, DIM),
            f"layers.{layer}.attention.wk.weight": random(KV_HEADS * HEAD, DIM),
            f"layers.{layer}.attention.wv.weight": random(KV_HEADS * HEAD, DIM),
            f"layers.{layer}.attention.wo.weight": random(DIM, DIM),
            f"layers.{layer}.feed_forward.w1.weight": random(HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w2.weight": random(DIM, HIDDEN),
            f"layers.{layer}.feed_forward.w3.weight": random(HIDDEN, DIM),
            f"layers.{layer}.attention_norm.weight": 1 + random(DIM),
            f"layers.{layer}.ffn_norm.weight": 1 + random(DIM),
        }
    return made


def reference(w: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Llama 2's published formulas with Meta's conventions: complex rotation of neighbouring pairs. Logits [time, v]."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight

    time = len(ids)
    angles = torch.outer(torch.arange(time).float(), 1 / 10000 ** (torch.arange(0, HEAD, 2).float() / HEAD))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], HEAD // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    h = w["tok_embeddings.weight"][ids]
    mask = torch.full((time, time), float("-inf")).triu(1)
    for layer in range(LAYERS):
        part = {key.split(".", 2)[2]: value for key, value in w.items() if key.startswith(f"layers.{layer}.")}
        x = norm(h, part["attention_norm.weight"])
        q = rotate((x @ part["attention.wq.weight"].T).view(time, HEADS, HEAD))
        k = rotate((x @ part["attention.wk.weight"].T).view(time, KV_HEADS, HEAD))
        v = (x @ part["attention.wv.weight"].T).view(time, KV_HEADS, HEAD)
        k, v = (one.repeat_interleave(HEADS // KV_HEADS, dim=1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD**0.5 + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(time, DIM)
        h = h + mixed @ part["attention.wo.weight"].T
        x = norm(h, part["ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ part["feed_forward.w1.weight"].T) * (x @ part["feed_forward.w3.weight"].T)
        h = h + gate @ part["feed_forward.w2.weight"].T
    return norm(h, w["norm.weight"]) @ w["output.weight"].T


def save(directory: Path, w: dict[str, torch.Tensor], ranks: int, *, by_vocabulary: bool = False) -> dict[str, Any]:
    """As Meta's model-parallel code saves them."""
    directory.mkdir()
    for rank in range(ranks):
        part = {}
        for name, value in w.items():
            across = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and not by_vocabulary)
            part[name] = value if value.dim() == 1 else value.chunk(ranks, dim=int(across))[rank].clone()
        torch.save(part, directory / f"consolidated.{rank:02d}.pth")
    parameters = {"dim": DIM, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": LAYERS, "norm_eps": EPSILON}
    (directory / "params.json").write_text(json.dumps({**parameters, "multiple_of": 16, "vocab_size": -1}))
    return {"type": "Llama2", "abbr": "m", "path": str(directory), "tokenizer_path": str(TOKENIZER), "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("ranks", "by_vocabulary"), [(1, False), (2, False), (2, True)])
def test_logits_equal_metas_formulas(tmp_path: Path, cache: Path, ranks: int, by_vocabulary: bool) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(TOKENIZER))
    size = pieces.vocab_size() + pieces.vocab_size() % 2
    w = weights(size)
    model: Any = build_model(save(tmp_path / "llama", w, ranks, by_vocabulary=by_vocabulary) | {"max_seq_len": 64})
    ids = model.tokenizer("I saw a girl with a telescope.")["input_ids"]
    assert ids == [pieces.bos_id(), *pieces.encode("I saw a girl with a telescope.")]
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0]
    assert torch.allclose(logits, reference(w, ids), atol=2e-4)
    assert model.max_seq_len == 64 and pieces.eos_id() in model.stop_ids
    (made,) = (cache / "models").iterdir()
    again: Any = build_model(
        {"type": "Llama2", "path": str(tmp_path / "llama"), "tokenizer_path": str(TOKENIZER), "max_seq_len": 64}
    )
    assert again.path == made == model.path  # converted once


def test_what_is_missing_or_unsafe_is_named(tmp_path: Path, cache: Path) -> None:
    w = weights(100)
    config = save(tmp_path / "llama", w, 2)
    before = model_identity(config)
    with pytest.raises(FileNotFoundError, match="no tokenizer of a Llama there"):
        build_model({**config, "tokenizer_path": str(tmp_path / "none.model")})
    torch.save({"tok_embeddings.weight": w["tok_embeddings.weight"]}, tmp_path / "llama" / "consolidated.01.pth")
    assert model_identity(config) != before
    with pytest.raises(ValueError, match=r"norm\.weight is not in consolidated\.01\.pth"):
        build_model(config)

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "llama" / "consolidated.01.pth", pickle_module=pickle)
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: cannot be read safely"):
        build_model(config)
    assert not (tmp_path / "evil").exists()
    (tmp_path / "llama" / "params.json").write_text("{}")
    torch.save(w, tmp_path / "llama" / "consolidated.01.pth")
    with pytest.raises(ValueError, match=r"params\.json: not the parameters of a Llama: KeyError: 'n_heads'"):
        build_model(config)
    assert not cache.exists() or not list((cache / "models").iterdir())
