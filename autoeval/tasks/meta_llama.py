"""Llama as Meta distributes it (``consolidated.*.pth``, ``params.json``, ``tokenizer.model``) to a Hugging Face directory.

The conversion is made once and kept in ``$AUTOEVAL_CACHE`` (``~/.cache/autoeval``) under a name that changes with the
files. Differences of the formats: the weights are cut over model-parallel ranks, and Meta's rotary embedding turns
neighbouring pairs of each head's numbers where Hugging Face's turns the two halves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.convert.tokenizer import TokenizerSource, write_tokenizer
from autoeval.convert.writer import Planned, write_model
from recorder.files import write_json
from recorder.untrusted import parse_json

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_VERSION = 1  # of this conversion: raise it when its output changes
_LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_OUTSIDE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ACROSS = ("attention.wo.weight", "feed_forward.w2.weight")  # cut along their inputs


@dataclass(frozen=True)
class _Params:
    """``params.json``, and what the weights' shapes say besides."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    epsilon: float
    rope_theta: float
    hidden: int
    vocabulary: int


def huggingface_copy(directory: Path, model: Mapping[str, Any]) -> Path:
    """The converted directory for the model's configuration (``tokenizer_path``, ``max_seq_len``).

    Raises ``FileNotFoundError`` and ``ValueError`` naming the file that is missing or not what it should be.
    """
    tokenizer = Path(model.get("tokenizer_path") or directory / "tokenizer.model")
    files = sorted(directory.glob("consolidated.*.pth"))
    for path, what in ((directory / "params.json", "parameters"), (tokenizer, "tokenizer")):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no {what} of a Llama there")
    if not files:
        raise FileNotFoundError(f"{directory}: no consolidated.*.pth there")
    window = int(model.get("max_seq_len") or 4096)
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (*files, tokenizer)]
    params = (directory / "params.json").read_text(encoding="utf-8")
    key = hashlib.sha256(repr((_VERSION, seen, params, window)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("AUTOEVAL_CACHE", Path.home() / ".cache" / "autoeval"), "models")
    target = cache / f"{directory.resolve().name}-{key}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix=f".{target.name}."))
    try:
        _convert(directory, files, tokenizer, window, partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # unless another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _convert(directory: Path, files: Sequence[Path], tokenizer: Path, window: int, target: Path) -> None:
    logger.info("%s: converting to Hugging Face's format", directory)
    ranks = [_load(path) for path in files]
    params = _params(directory / "params.json", ranks)
    dtype = str(ranks[0]["norm.weight"].dtype).removeprefix("torch.")
    write_model(target, list(_planned(params, ranks, directory)), dtype)
    write_tokenizer(TokenizerSource(kind="sentencepiece", path=tokenizer), target, max_length=window)
    ends = _put_bos_first(target, tokenizer)
    write_json(target / "config.json", {**_config(params, window), "dtype": dtype, **ends})


def _load(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read safely: {reason}") from error
    if not isinstance(content, dict) or "tok_embeddings.weight" not in content:
        raise ValueError(f"{path}: not weights of a Llama (there is no tok_embeddings.weight)")
    return content


def _params(path: Path, ranks: Sequence[Mapping[str, Tensor]]) -> _Params:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        heads = int(found["n_heads"])
        output = ranks[0]["output.weight"]
        return _Params(
            dim=int(found["dim"]),
            layers=int(found["n_layers"]),
            heads=heads,
            kv_heads=int(found.get("n_kv_heads") or heads),
            epsilon=float(found["norm_eps"]),
            rope_theta=float(found.get("rope_theta") or 10000.0),
            # multiple_of and ffn_dim_multiplier say the same in a roundabout way.
            hidden=ranks[0]["layers.0.feed_forward.w1.weight"].shape[0] * len(ranks),
            vocabulary=output.shape[0] * len(ranks),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the parameters of a Llama: {type(error).__name__}: {error}") from error


def _planned(params: _Params, ranks: Sequence[Mapping[str, Tensor]], directory: Path) -> Iterator[Planned]:
    head = params.dim // params.heads
    shapes: dict[str, tuple[int, ...]] = {
        "attention.wq.weight": (params.dim, params.dim),
        "attention.wk.weight": (params.kv_heads * head, params.dim),
        "attention.wv.weight": (params.kv_heads * head, params.dim),
        "attention.wo.weight": (params.dim, params.dim),
        "feed_forward.w1.weight": (params.hidden, params.dim),
        "feed_forward.w2.weight": (params.dim, params.hidden),
        "feed_forward.w3.weight": (params.hidden, params.dim),
        "tok_embeddings.weight": (params.vocabulary, params.dim),
        "output.weight": (params.vocabulary, params.dim),
    }
    names = [(name, name, _OUTSIDE[name]) for name in _OUTSIDE]
    for layer in range(params.layers):
        names += [(f"layers.{layer}.{name}", name, f"model.layers.{layer}.{ours}") for name, ours in _LAYER.items()]
    for theirs, kind, ours in names:
        missing = [number for number, rank in enumerate(ranks) if theirs not in rank]
        if missing:
            raise ValueError(f"{directory}: {theirs} is not in consolidated.{missing[0]:02d}.pth")
        yield Planned(ours, shapes.get(kind, (params.dim,)), _reader(theirs, kind, params, ranks, directory))


def _reader(name: str, kind: str, params: _Params, ranks: Sequence[Mapping[str, Tensor]], directory: Path) -> Any:
    def read() -> Tensor:
        parts = [rank[name] for rank in ranks]
        whole = parts[0] if parts[0].dim() == 1 else _joined(parts, kind, params)
        heads = {"attention.wq.weight": params.heads, "attention.wk.weight": params.kv_heads}.get(kind)
        if heads is None:
            return whole
        rows, columns = whole.shape
        if rows % (2 * heads):
            raise ValueError(f"{directory}: {name} has {rows} rows, which {heads} heads cannot share")
        return whole.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)

    return read


def _joined(parts: Sequence[Tensor], kind: str, params: _Params) -> Tensor:
    import torch

    if len(parts) == 1:
        return parts[0]
    # Llama 2 cuts the embedding along its width, Llama 3 along the vocabulary.
    narrow = kind == "tok_embeddings.weight" and parts[0].shape[1] != params.dim
    return torch.cat(list(parts), dim=1 if kind in _ACROSS or narrow else 0)


def _config(params: _Params, window: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params.dim,
        "intermediate_size": params.hidden,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "num_key_value_heads": params.kv_heads,
        "rms_norm_eps": params.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": params.rope_theta},
        "vocab_size": params.vocabulary,
        "max_position_embeddings": window,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _put_bos_first(directory: Path, file: Path) -> dict[str, int]:
    """Let the tokenizer begin every text with BOS, as Meta's own does; the ids of BOS and EOS."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise ValueError(f"{file}: a Llama's tokenizer has BOS and EOS; this one lacks them")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    tokenizer.save_pretrained(directory)
    return {"bos_token_id": bos, "eos_token_id": eos}
