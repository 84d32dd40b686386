"""Conversations to token ids, and which of them are learned: those of the assistant's answers, with their end.

``general``: a conversation is one sample, and all its answers are learned. ``faq``: every question with its answer is a
sample of its own, without what was said before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from autoeval.datasets.messages import conversation
from autoeval.datasets.rows import DatasetError, read_jsonl

IGNORED = -100  # PyTorch's cross-entropy leaves such labels out
Message = dict[str, str]


def read_conversations(path: Path, scenario: str) -> list[list[Message]]:
    """The conversations of a jsonl file. Raises ``DatasetError`` naming file and line."""
    found = [conversation(row) for row in read_jsonl(path)]
    if not found:
        raise DatasetError(f"{path}: there is no conversation in it")
    return found if scenario == "general" else [pair for one in found for pair in _pairs(one)]


def _pairs(messages: Sequence[Message]) -> Iterator[list[Message]]:
    system = [message for message in messages if message["role"] == "system"]
    rest = messages[len(system) :]
    for question, answer in zip(rest[::2], rest[1::2], strict=True):
        yield [*system, question, answer]


def encode(tokenizer: Any, messages: Sequence[Message], specials: Sequence[str], longest: int) -> dict[str, list[int]]:
    """``input_ids`` and ``labels``, cut at ``longest`` tokens.

    Raises ``ValueError`` when the chat template does not put an answer after its own prompt.
    """
    text, spans = _rendered(tokenizer, messages)
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = list(encoded["input_ids"])
        learned = [any(a <= start < end <= b for a, b in spans) for start, end in encoded["offset_mapping"]]
    else:
        ids, learned = _by_pieces(tokenizer, text, spans, specials)
    labels = [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)]
    return {"input_ids": ids[:longest], "labels": labels[:longest]}


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and from where to where in it the answers are."""
    text, spans = "", []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
        text = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
        if not text.startswith(before):
            raise ValueError("the tokenizer's chat_template does not put an answer right after its prompt")
        spans.append((len(before), len(text)))
    return text, spans


def _by_pieces(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], specials: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """For tokenizers that tell no offsets: cut at the answers and at special tokens, each piece by itself."""
    ids: list[int] = []
    learned: list[bool] = []
    known = [*specials, *filter(None, [tokenizer.bos_token, tokenizer.eos_token])]
    pattern = re.compile("(" + "|".join(map(re.escape, known)) + ")")
    edges = [0, *(edge for span in spans for edge in span)]
    for place, (start, end) in enumerate(pairwise(edges)):
        for piece in filter(None, pattern.split(text[start:end])):
            if piece in known:
                made = [tokenizer.convert_tokens_to_ids(piece)]
            else:
                made = list(tokenizer(piece, add_special_tokens=False)["input_ids"])
            ids += made
            learned += [place % 2 == 1] * len(made)
    return ids, learned


class Padding:
    """Batches: ids padded on the right, with their attention mask; padding is not learned."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(sample["input_ids"]) for sample in samples)

        def padded(key: str, value: int) -> Any:
            return torch.tensor([sample[key] + [value] * (width - len(sample[key])) for sample in samples])

        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        return {"input_ids": padded("input_ids", self.pad), "labels": padded("labels", IGNORED), "attention_mask": mask}
