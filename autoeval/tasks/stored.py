"""Predictions on disk: which items are there, and whether they are of the data, prompts and model of today.

A predictions file is OpenCompass's: ``{"0": {...}, "1": {...}}``. Each record carries ``made_from``, three short
hashes: of the row with its examples, of prompt and inferencer, and of the model. A record is used again only when all
three agree; anything else is refused with the file and what differs (OpenCompass took it for the new item's).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.checkpoints import fingerprint
from autoeval.openicl.sample import Sample
from autoeval.tasks.icl import HARNESS_VERSION, IclTask
from autoeval.tasks.names import output_path
from recorder.untrusted import parse_json

Record = dict[str, Any]
Origin = dict[str, str]

# What a model answers does not depend on these.
_NOT_IDENTITY = {
    "abbr",
    "batch_size",
    "batch_padding",
    "batch_tokens",
    "run_cfg",
    "key",
    "api_key",
    "pred_postprocessor",
}
_NOT_IDENTITY |= {"max_out_len", "min_out_len", "generation_kwargs", "retry", "query_per_second", "max_workers"}
# The files of a tokenizer, with its chat template.
_WORDS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.tiktoken",
)
_CHANGED = {
    "data": "the row or its in-context examples changed, or the items were cut otherwise (--limit, the partitioning)",
    "task": "the prompt, the inferencer's settings or this program's scoring changed",
    "model": "the model is another one, or its files changed",
}


class StoredError(ValueError):
    """Predictions that are not there, not whole, or not of what is asked; the message names the file."""


def model_identity(model: Mapping[str, Any]) -> str:
    """A hash of all in a model's configuration that can change its answers, of its weight files and its tokenizer."""
    identity = {key: value for key, value in model.items() if key not in _NOT_IDENTITY}
    for key in ("path", "peft_path"):
        path = model.get(key)
        if path and Path(str(path)).is_dir():
            identity[f"{key} files"] = fingerprint(Path(str(path)))
    words = Path(str(model.get("tokenizer_path") or model.get("path")))
    files = [words, *sorted(file for name in _WORDS for file in words.glob(name))]
    identity["words"] = [_hash(file.read_bytes()) for file in files if file.is_file()]
    return _hash(json.dumps(identity, sort_keys=True, default=str))


def origins(task: IclTask, model: str | None) -> list[Origin]:
    """``made_from`` of every sample; ``model`` is ``model_identity``, or ``None`` where any one model will do."""
    settings = [HARNESS_VERSION, dataclasses.asdict(task.prompting.reader), task.infer_cfg]
    made = _hash(json.dumps(settings, ensure_ascii=False, default=str))
    same = {"task": made} if model is None else {"task": made, "model": model}
    return [{"data": _row_hash(sample), **same} for sample in task.samples]


def _row_hash(sample: Sample) -> str:
    return _hash("".join(row.digest for row in (sample.row, *sample.examples)))


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]


def read_records(path: Path) -> list[Record]:
    """The records in order. Raises ``StoredError`` for a file of another shape."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoredError(f"{path}: cannot be read as predictions: {error}") from error
    whole = isinstance(content, dict) and all(isinstance(record, dict) for record in content.values())
    if not whole or list(content) != [str(number) for number in range(len(content))]:
        raise StoredError(f'{path}: expected predictions, {{"0": {{...}}, "1": {{...}}, ...}} without gaps')
    return list(content.values())


def check_records(path: Path, records: Sequence[Mapping[str, Any]], expected: Sequence[Origin]) -> None:
    """Refuse records that were not made from what is there now. There may be fewer than expected, never more."""
    for number, (record, origin) in enumerate(zip(records, expected, strict=False)):
        found = record.get("made_from")
        if not isinstance(found, dict):
            raise StoredError(f"{path}: item {number} does not say what it was made from; {_REMEDY}")
        for part, reason in _CHANGED.items():
            if found.get(part) != origin.get(part, found.get(part)):
                raise StoredError(f"{path}: item {number} cannot be used again: {reason}; {_REMEDY}")
    if len(records) > len(expected):
        raise StoredError(f"{path}: {len(records)} items, but the data has {len(expected)}; {_REMEDY}")


_REMEDY = "remove the file, or start a new run without -r"


def unfinished_path(path: Path) -> Path:
    """Where an interrupted inference has its items (OpenCompass's name)."""
    return path.with_name(f"tmp_{path.name}")


def prediction_files(directory: Path, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[Path]:
    """``<abbr>.json``, or the shards ``<abbr>_0.json``, ``<abbr>_1.json``, ... up to the first that is missing."""
    whole = output_path(directory, model, dataset)
    return [whole] if whole.exists() else list(_shards(whole))


def _shards(whole: Path) -> Iterator[Path]:
    number = 0
    while (shard := shard_path(whole, number)).exists():
        yield shard
        number += 1


def shard_path(whole: Path, number: int) -> Path:
    return whole.with_name(f"{whole.stem}_{number}.json")


def begun_records(
    directory: Path, model: Mapping[str, Any], dataset: Mapping[str, Any], expected: Sequence[Origin]
) -> list[Record]:
    """The first items of a dataset (or part) as far as they are there, also when it was cut otherwise before.

    Raises ``StoredError`` for items that are not of today's data.
    """
    whole = output_path(directory, model, dataset)
    for path in (whole, unfinished_path(whole)):
        if path.exists():
            records = read_records(path)
            check_records(path, records, expected)
            return records
    if "test_range" in dataset and (uncut := _of_the_uncut(whole, str(dataset["test_range"]))):
        path, records = uncut
        check_records(path, records[: len(expected)], expected)
        return records[: len(expected)]
    records = []
    for path in [*_shards(whole), unfinished_path(shard_path(whole, len(list(_shards(whole)))))]:
        if path.exists():
            part = read_records(path)
            check_records(path, part, expected[len(records) :])
            records += part
    return records


def _of_the_uncut(part: Path, test_range: str) -> tuple[Path, list[Record]] | None:
    """The items from where ``part`` begins, if the dataset was begun as one."""
    name, _, number = part.stem.rpartition("_")
    start = re.search(r"\[(\d+):\d*\]$", test_range)
    path = unfinished_path(part.with_name(f"{name}.json"))
    if not number.isdigit() or start is None or not path.exists():
        return None
    return path, read_records(path)[int(start[1]) :]


def merged_records(
    directory: Path, model: Mapping[str, Any], dataset: Mapping[str, Any], expected: Sequence[Origin]
) -> list[Record]:
    """All records of a dataset, from one file or its shards. Raises ``StoredError`` naming the one that is missing."""
    whole = output_path(directory, model, dataset)
    files = prediction_files(directory, model, dataset)
    records: list[Record] = []
    for path in files:
        part = read_records(path)
        check_records(path, part, expected[len(records) :])
        records.extend(part)
    if not files:
        raise StoredError(f"{whole}: there are no predictions (and no shard {shard_path(whole, 0).name})")
    if len(records) < len(expected):
        if files == [whole]:
            raise StoredError(f"{whole}: {len(records)} items, but the data has {len(expected)}; {_REMEDY}")
        missing = shard_path(whole, len(files))
        raise StoredError(f"{missing}: this shard is missing: {len(records)} of {len(expected)} items are there")
    if len({record["made_from"].get("model") for record in records}) > 1:
        raise StoredError(f"{whole}: its items were made by different models; {_REMEDY}")
    return records


def complete(directory: Path, model: Mapping[str, Any], dataset: Mapping[str, Any], expected: Sequence[Origin]) -> bool:
    """Whether all items are there. Raises ``StoredError`` for what is there and is not of today's data."""
    found = 0
    for path in prediction_files(directory, model, dataset):
        records = read_records(path)
        check_records(path, records, expected[found:])
        found += len(records)
    unfinished = unfinished_path(output_path(directory, model, dataset))
    if not found and unfinished.exists():
        check_records(unfinished, read_records(unfinished), expected)
    return found == len(expected)
