"""Datasets as OpenCompass's own configurations call for them: its names of places, and options with no meaning here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Its names of data sets (since 2024) and where its users have them.
PATHS = {
    "opencompass/agieval": "./data/AGIEval/data/v1/",
    "opencompass/ai2_arc-test": "./data/ARC/ARC-c/ARC-Challenge-Test.jsonl",
    "opencompass/ai2_arc-dev": "./data/ARC/ARC-c/ARC-Challenge-Dev.jsonl",
    "opencompass/ai2_arc-easy-dev": "./data/ARC/ARC-e/ARC-Easy-Dev.jsonl",
    "opencompass/afqmc-dev": "./data/CLUE/AFQMC/dev.json",
    "opencompass/bbh": "./data/BBH/data",
    "opencompass/boolq": "./data/SuperGLUE/BoolQ/val.jsonl",
    "opencompass/cmrc_dev": "./data/CLUE/CMRC/dev.json",
    "opencompass/commonsense_qa": "./data/commonsenseqa",
    "opencompass/drcd_dev": "./data/CLUE/DRCD/dev.json",
    "opencompass/gsm8k": "./data/gsm8k/",
    "opencompass/hellaswag": "./data/hellaswag/hellaswag.jsonl",
    "opencompass/humaneval": "./data/humaneval/human-eval-v2-20210705.jsonl",
    "opencompass/lambada": "./data/lambada/test.jsonl",
    "opencompass/mmlu": "./data/mmlu/",
    "opencompass/openbookqa_test": "./data/openbookqa/Main/test.jsonl",
    "opencompass/openbookqa_fact": "./data/openbookqa/Additional/test_complete.jsonl",
    "opencompass/piqa": "./data/piqa",
    "opencompass/siqa": "./data/siqa",
    "opencompass/winogrande": "./data/winogrande/",
}
# What its loaders take and what here follows from the path; and what its variants of a loader do otherwise.
_NO_MEANING = {
    "ARCDataset": "name",
    "OBQADataset": "name",
    "OBQADatasetV2": "name",
    "AGIEvalDataset_v2": "setting_name",
}
_OTHERWISE = {"AGIEvalDataset_v2": {"between": ""}}


def understood(type_: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the loader ``type_`` as loaders here take them. Raises ``ValueError`` for what is not on disk."""
    made = {key: value for key, value in options.items() if key not in ("local_mode", _NO_MEANING.get(type_))}
    if "data_files" in made:  # Hugging Face's load_dataset("json", data_files=..., split="train")
        if made.pop("path", "json") != "json":
            raise ValueError(f"path {options['path']!r} with data_files: expected 'json'")
        made["path"] = made.pop("data_files")
        made.pop("split", None)
    path = made.get("path")
    if isinstance(path, str):
        made["path"] = PATHS.get(path.rstrip("/"), path)
    return {**made, **_OTHERWISE.get(type_, {})}
