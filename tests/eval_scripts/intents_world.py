"""A small sentence-transformers model that measures something, and data sets with planted mismatches."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

DIMENSIONS = 256


def save_word_embedder(directory: Path, texts: Sequence[str], *, seed: int = 0) -> Path:
    """An SBERT directory of static embeddings: each word a random direction as long as the word is rare.

    Cosines of random projections are those of tf-idf vectors up to some hundredths (Johnson and Lindenstrauss), so that
    it finds sentences of the same words.
    """
    import numpy
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    documents = Counter(word for text in texts for word in set(re.findall(r"\w+|[^\w\s]", text.lower())))
    words = ["[UNK]", *sorted(documents)]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = numpy.random.default_rng(seed).normal(size=(len(words), DIMENSIONS)).astype(numpy.float32)
    rarity = [1.0 + math.log(len(texts) / (1 + documents[word])) if word in documents else 0.0 for word in words]
    weights *= numpy.array(rarity, dtype=numpy.float32)[:, None] / math.sqrt(DIMENSIONS)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(
        str(directory)
    )
    return directory


def banking77(data: Path, count: int, seed: int = 0) -> list[tuple[str, str]]:
    with (data / "intents" / "banking77" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = [(" ".join(row["text"].split()), row["category"]) for row in csv.DictReader(stream)]
    return random.Random(seed).sample(rows, count)


def clinc150(data: Path, count: int, seed: int = 0) -> list[tuple[str, str]]:
    rows = json.loads((data / "intents" / "clinc150" / "data_full.json").read_text(encoding="utf-8"))["train"]
    return random.Random(seed).sample([(text, intent) for text, intent in rows], count)


def plant(rows: Sequence[tuple[str, str]], count: int, seed: int = 0) -> tuple[list[dict], set[tuple[int, int]]]:
    """Records of ``rows``, of which ``count`` come once more, reworded a little and with another intent; the pairs of
    lines that should be found."""
    chance = random.Random(seed)
    intents = sorted({intent for _, intent in rows})
    records = [{"instruction": text, "input": "", "intent": intent, "output": f"on {intent}"} for text, intent in rows]
    long_enough = [line for line, (text, _) in enumerate(rows) if len(text.split()) >= 8]
    planted = set()
    for line in chance.sample(long_enough, count):
        text, intent = rows[line]
        other = chance.choice([one for one in intents if one != intent])
        planted.add((line, len(records)))
        records.append({"instruction": _reworded(text, chance), "input": "", "intent": other, "output": f"on {other}"})
    return records, planted


def _reworded(text: str, chance: random.Random) -> str:
    words = text.split()
    return chance.choice(
        [
            text.upper(),
            text.rstrip("?.!") + " please",
            " ".join(words[1:] + words[:1]),
            "Hi, " + text[0].lower() + text[1:],
            text + " Thanks",
        ]
    )
