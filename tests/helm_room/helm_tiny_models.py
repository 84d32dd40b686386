"""Tiny random models on disk and the straightforward way to ask one: no batching, no cache, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoeval.models.requests import (
    Cost,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
)

WINDOW = 512


class DirectModel:
    """A ``LanguageModel`` that is easy to trust: greedy generation by whole forward passes of one sequence."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.max_seq_len = int(self.model.config.n_positions)
        self.cost = Cost()

    def _logprobs(self, tokens: Sequence[int]):
        import torch

        self.cost.computed_tokens += len(tokens)
        with torch.inference_mode():
            logits = self.model(torch.tensor([list(tokens)[-self.max_seq_len :]])).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        results = []
        for request in requests:
            logprobs = self._logprobs((*request.context, *request.continuation))
            start = len(request.context) - 1
            rows = logprobs[start : start + len(request.continuation)]
            values = [float(row[token]) for row, token in zip(rows, request.continuation, strict=True)]
            greedy = [int(row.argmax()) for row in rows] == list(request.continuation)
            results.append(LoglikelihoodResult(tuple(values), greedy))
        return results

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        return [self._generate(request) for request in requests]

    def _generate(self, request: GenerationRequest) -> GenerationResult:
        tokens: list[int] = []
        values: list[float] = []
        while len(tokens) < request.max_new_tokens:
            row = self._logprobs((*request.prompt, *tokens))[-1]
            token = int(row.argmax())
            if token == self.tokenizer.eos_token_id:
                return GenerationResult(self._text(tokens), tuple(tokens), tuple(values), "stop")
            tokens.append(token)
            values.append(float(row[token]))
            self.cost.generated_tokens += 1
            text = self._text(tokens)
            ends = [text.index(stop) for stop in request.stop if stop in text]
            if ends:
                return GenerationResult(text[: min(ends)], tuple(tokens[:-1]), tuple(values[:-1]), "stop")
        return GenerationResult(self._text(tokens), tuple(tokens), tuple(values), "length")


def make_model(path: Path, seed: int) -> Path:
    """A random two-layer GPT-2 with its own small byte-level BPE, as a converted checkpoint lies on disk."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    text = "Rules: X + Y = Z | Result: zebra * lion apple peach\nTarget: Input: ( ) [ ] { }\nAnswer: A. B. C. D.\n"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text, "the quick brown fox answers yes or no to a question"] * 8, vocab_size=420,
                            special_tokens=["<|endoftext|>"], show_progress=False)  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=WINDOW
    )
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=WINDOW, n_embd=32, n_layer=2, n_head=2, initializer_range=0.6,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
