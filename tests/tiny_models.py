"""Tiny random models with a small tokenizer, saved as Hugging Face directories: real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Question: what colour is the sky? Answer: blue",
    "True or false, yes or no, A B C D",
    "12 + 30 = 42, and so on; a cat sat on the mat.",
]


def save_tiny_model(directory: Path, kind: str = "gpt2", *, window: int = 128, seed: int = 0) -> Path:
    """A random ``gpt2`` or ``llama`` (grouped-query attention) with a byte-level BPE tokenizer in ``directory``."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = save_tiny_tokenizer(directory, add_bos=kind == "llama")
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = len(tokenizer)
    model: Any
    if kind == "gpt2":
        # A large initial range makes the distributions far from uniform, so that mistakes show.
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size, n_positions=window, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **ends
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                max_position_embeddings=window,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.3,
                **ends,
            )
        )
    model.save_pretrained(directory)
    return directory


def save_tiny_tokenizer(directory: Path, *, add_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer of 300 tokens; with ``add_bos`` it puts ``<s>`` first, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(directory)
    return tokenizer
