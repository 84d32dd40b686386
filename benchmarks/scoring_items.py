"""The items of ``benchmarks/scoring.py``: real texts from AUTOEVAL_DATA, else random tokens of the same shape."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data"))
TNEWS = [
    "故事",
    "文化",
    "娱乐",
    "体育",
    "财经",
    "房产",
    "汽车",
    "教育",
    "科技",
    "军事",
    "旅游",
    "国际",
    "股票",
    "农业",
    "游戏",
]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """``contexts``, each with ``choices`` continuations (none where texts are generated), as text."""

    contexts: list[str]
    continuations: list[list[str]]

    @property
    def choices(self) -> int:
        return len(self.continuations[0]) if self.continuations else 0

    def pairs(self, tokenizer: Any) -> list[tuple[Tokens, Tokens]]:
        found = []
        for context, choices in zip(self.contexts, self.continuations, strict=True):
            head = tuple(tokenizer(context)["input_ids"])
            found += [(head, tuple(tokenizer(choice)["input_ids"])) for choice in choices]
        return found

    def texts(self) -> list[str]:
        """Whole prompts: each context with each choice."""
        both = zip(self.contexts, self.continuations, strict=True)
        return [context + choice for context, choices in both for choice in choices]


def save_model(directory: Path, kind: str) -> None:
    """33 M parameters of GPT-2's shape, or 124 M of Llama's (rope, grouped queries); random weights, GPT-2's words."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2TokenizerFast, LlamaConfig

    torch.manual_seed(0)
    files = DATA / "tokenizers" / "gpt2"
    if not files.is_dir():
        raise SystemExit(f"{files}: not there; AUTOEVAL_DATA must name the folder of data with GPT-2's tokenizer")
    tokenizer = GPT2TokenizerFast(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))
    tokenizer.save_pretrained(directory)
    ends = {"bos_token_id": 50256, "eos_token_id": 50256}
    config: Any = GPT2Config(n_layer=8, n_embd=384, n_head=6, **ends)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=50257,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            **ends,
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def mmlu(tokenizer: Any, count: int) -> Work:
    """Five-shot questions of a few subjects, 20 of each at most; four single-token labels."""
    folder = DATA / "opencompass" / "mmlu"
    contexts: list[str] = []
    for path in sorted((folder / "test").glob("*.csv")):
        subject = path.name.removesuffix("_test.csv")
        shots = list(csv.reader((folder / "dev" / f"{subject}_dev.csv").open(encoding="utf-8")))[:5]
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        head += "".join(_question(row) + f" {row[5]}\n\n" for row in shots)
        contexts += [head + _question(row) for row in list(csv.reader(path.open(encoding="utf-8")))[:20]]
    return _fitting(tokenizer, contexts, [[" A", " B", " C", " D"]] * len(contexts), count)


def _question(row: Sequence[str]) -> str:
    return row[0] + "".join(f"\n{label}. {row[n + 1]}" for n, label in enumerate("ABCD")) + "\nAnswer:"


def hellaswag(tokenizer: Any, count: int, shots: int = 0) -> Work:
    rows = _lines("hellaswag/hellaswag.jsonl", count + shots)
    head = "".join(f"{row['query']} {row['choices'][row['gold']]}\n\n" for row in rows[:shots])
    contexts = [head + row["query"] for row in rows[shots:]]
    return _fitting(tokenizer, contexts, [[f" {one}" for one in row["choices"]] for row in rows[shots:]], count)


def hellaswag5(tokenizer: Any, count: int) -> Work:
    return hellaswag(tokenizer, count, 5)


def tnews(tokenizer: Any, count: int) -> Work:
    """Headlines with 15 classes, Chinese."""
    rows = _lines("FewCLUE/tnews/test_public.json", count)
    contexts = [row["sentence"] + "\n这条新闻的类别是：" for row in rows]
    return _fitting(tokenizer, contexts, [TNEWS] * len(contexts), count)


def generation(tokenizer: Any, count: int) -> Work:
    """Two-shot prompts of gsm8k and of boolq in turns."""
    forms = {
        "gsm8k/test.jsonl": "Question: {question}\nAnswer:",
        "SuperGLUE/BoolQ/val.jsonl": "{passage}\nQuestion: {question}?\nAnswer:",
    }
    texts = []
    for name, form in forms.items():
        rows = _lines(name, 2 + (count + 1) // 2)
        head = "".join(f"{form.format(**row)} {row.get('answer', 'yes')}\n\n" for row in rows[:2])
        texts.append([head + form.format(**row) for row in rows[2:]])
    return Work([text for both in zip(*texts, strict=True) for text in both][:count], [])


WORKS: dict[str, Callable[[Any, int], Work]] = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "hellaswag5": hellaswag5,
    "tnews": tnews,
    "generation": generation,
}


def _lines(name: str, count: int) -> list[dict[str, Any]]:
    path = DATA / "opencompass" / name
    if not path.is_file():
        raise SystemExit(f"{path}: not there; AUTOEVAL_DATA must name the folder of data")
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for _, line in zip(range(count), stream, strict=False)]


def _fitting(tokenizer: Any, contexts: list[str], continuations: list[list[str]], count: int) -> Work:
    """The first ``count`` items that fit a window of 1,024 tokens, so that nobody cuts anything."""
    fit = [number for number, text in enumerate(contexts) if len(tokenizer(text)["input_ids"]) < 950][:count]
    return Work([contexts[number] for number in fit], [continuations[number] for number in fit])
