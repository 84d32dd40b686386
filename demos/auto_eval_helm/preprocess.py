"""jsonl -> the .bin and .idx that Megatron-LM trains on. Needs only megatron-core and a tokenizer; no GPU.

    python demos/auto_eval_helm/preprocess.py corpus.jsonl /data/corpus/corpus \
        --vocab-file /data/gpt2/vocab.json --merge-file /data/gpt2/merges.txt

writes ``/data/corpus/corpus_text_document.{bin,idx}``, the names and the format that Megatron-LM's own
``tools/preprocess_data.py --append-eod`` gives (use that one for many processes on a large corpus). Every line is a
JSON object with the text under ``--json-key``. The two files appear only when both are whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENT = "text_document"


def documents(path: Path, key: str) -> Iterator[str]:
    """The texts of a jsonl file. Raises ``ValueError`` naming the line of one that is none."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: expected a JSON object with the key {key!r}: {error}") from error
            if not isinstance(text, str):
                raise ValueError(f"{path}:{number}: {key!r} must be a string, got {type(text).__name__}")
            yield text


def write_dataset(path: Path, prefix: Path, tokenizer: Any, key: str = "text") -> tuple[int, int]:
    """Write ``<prefix>_text_document.{bin,idx}``; (documents, tokens). Empty documents are left out."""
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    target = prefix.with_name(f"{prefix.name}_{DOCUMENT}")
    parts = {ending: target.with_name(f".{target.name}.part{ending}") for ending in (".bin", ".idx")}
    target.parent.mkdir(parents=True, exist_ok=True)
    dtype = numpy.uint16 if len(tokenizer) < 65500 else numpy.int32
    count = tokens = 0
    try:
        builder = IndexedDatasetBuilder(str(parts[".bin"]), dtype=dtype)
        for text in documents(path, key):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not ids:
                continue
            ids.append(tokenizer.eos_token_id)
            builder.add_document(torch.tensor(ids), [len(ids)])
            count, tokens = count + 1, tokens + len(ids)
        if not count:
            raise ValueError(f"{path}: no document in it")
        builder.finalize(str(parts[".idx"]))
        for ending in (".bin", ".idx"):  # Megatron opens the .idx first
            parts[ending].replace(target.with_name(target.name + ending))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return count, tokens


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="jsonl to Megatron's .bin and .idx")
    parser.add_argument("input", type=Path, help="a jsonl file")
    parser.add_argument("output_prefix", type=Path, help="_text_document.bin and .idx are appended")
    parser.add_argument("--json-key", default="text")
    parser.add_argument("--vocab-file", type=Path, required=True, help="GPT-2's vocab.json")
    parser.add_argument("--merge-file", type=Path, required=True, help="GPT-2's merges.txt")
    options = parser.parse_args(arguments)
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        bpe = ByteLevelBPETokenizer.from_file(str(options.vocab_file), str(options.merge_file))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
        count, tokens = write_dataset(options.input, options.output_prefix, tokenizer, options.json_key)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} documents, {tokens} tokens in {options.output_prefix}_{DOCUMENT}.bin")
    return 0


if __name__ == "__main__":
    sys.exit(main())
