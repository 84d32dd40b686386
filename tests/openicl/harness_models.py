"""Two small random models whose weights depend on numpy's generator alone, so that recorded numbers stay theirs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy

LIMIT = 60  # items of each task
WINDOW = 2048
TASKS = {
    "hellaswag": "hellaswag_ll",
    "piqa": "piqa_ll",
    "winogrande": "winogrande_ll",
    "arc_challenge": "ARC_c_ll",
    "arc_easy": "ARC_e_ll",
    "boolq": "boolq_ll",
    "mmlu": "mmlu_available_ll",
    "lambada": "lambada_ll",
    "gsm8k": "gsm8k_gen",
}
KINDS = ("gpt2", "llama")
GSM8K_LIMIT = 8  # 256 tokens each


def limit_of(task: str) -> int:
    return GSM8K_LIMIT if task == "gsm8k" else LIMIT


def save_model(kind: str, directory: Path, tokenizer_files: Path) -> Path:
    """``gpt2`` or ``llama`` (grouped-query attention) with GPT-2's tokenizer; Llama's puts a BOS first."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = GPT2Tokenizer(str(tokenizer_files / "vocab.json"), str(tokenizer_files / "merges.txt"))
    if kind == "llama":
        from tokenizers import processors

        end = tokenizer.eos_token
        # After GPT-2's own byte-level processor, which only matters for offsets.
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
        )
    tokenizer.model_max_length = WINDOW
    tokenizer.save_pretrained(directory)
    ends: dict[str, Any] = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = len(tokenizer)
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4, **ends))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                max_position_embeddings=WINDOW,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                **ends,
            )
        )
    for name, parameter in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            continue  # as initialised: ones and zeros
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        drawn = numpy.random.Generator(numpy.random.PCG64(seed)).standard_normal(tuple(parameter.shape))
        # A large range makes the distributions far from uniform, so that mistakes show.
        parameter.data = torch.from_numpy(drawn.astype(numpy.float32) * 0.25)
    model.save_pretrained(directory)
    return directory


def read_recorded() -> dict[str, Any]:
    return dict(json.loads(Path(__file__).with_name("harness_numbers.json").read_text(encoding="utf-8")))
