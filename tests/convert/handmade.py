"""Checkpoints made without Megatron: a GPT-2-style save with random weights, as one legacy rank file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from autoeval.convert import TokenizerSource
from autoeval.convert.megatron_cpu import gpt_args


def legacy_checkpoint(directory: Path, *, num_layers: int = 1, optimizer: Any = None, **overrides: Any) -> Path:
    args = gpt_args(**{"num_layers": num_layers, "padded_vocab_size": 384, **overrides})
    h, f = args.hidden_size, args.ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (args.padded_vocab_size, h),
        "embedding.position_embeddings.weight": (args.max_position_embeddings, h),
        "decoder.final_layernorm.weight": (h,), "decoder.final_layernorm.bias": (h,),
    }  # fmt: skip
    for layer in range(num_layers):
        for name, shape in {
            "input_layernorm.weight": (h,), "input_layernorm.bias": (h,), "pre_mlp_layernorm.weight": (h,),
            "pre_mlp_layernorm.bias": (h,), "self_attention.linear_qkv.weight": (3 * h, h),
            "self_attention.linear_qkv.bias": (3 * h,), "self_attention.linear_proj.weight": (h, h),
            "self_attention.linear_proj.bias": (h,), "mlp.linear_fc1.weight": (f, h), "mlp.linear_fc1.bias": (f,),
            "mlp.linear_fc2.weight": (h, f), "mlp.linear_fc2.bias": (h,),
        }.items():  # fmt: skip
            shapes[f"decoder.layers.{layer}.{name}"] = shape
    generator = torch.Generator().manual_seed(0)
    model = {
        name: (torch.randn(shape, generator=generator) * 0.1).to(args.params_dtype) for name, shape in shapes.items()
    }
    state = {"args": args, "checkpoint_version": 3.0, "model": model}
    if optimizer is not None:
        state["optimizer"] = optimizer
    (directory / "mp_rank_00").mkdir(parents=True)
    torch.save(state, directory / "mp_rank_00/model_optim_rng.pt")
    return directory


def small_tokenizer(directory: Path) -> TokenizerSource:
    """A byte-level vocabulary of 256 bytes, two merges and the end of text: 259 tokens."""
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\nh e\nhe l\n")
    return TokenizerSource("gpt2", vocab_path=directory / "vocab.json", merge_path=directory / "merges.txt")
