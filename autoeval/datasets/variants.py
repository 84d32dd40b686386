"""OpenCompass's variants of a loader: the same file, with the columns that its configurations of that name expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoeval.datasets.rows import Row

Columns = dict[str, Any]
Splits = dict[str, list[Row]]


def _letter(columns: Columns, source: str, target: str) -> Columns:
    return {**columns, target: "ABCDE"[int(columns[source])]}


def _without_activity(columns: Columns) -> Columns:
    """HellaSwag's context without the activity before the colon."""
    return {**columns, "ctx": columns["ctx"].split(": ", 2)[-1]}


def _asked(columns: Columns) -> Columns:
    """OpenBookQA's stem as a question."""
    stem = columns["question_stem"]
    return {**columns, "question_stem": stem if stem.endswith("?") else stem + " what?"}


def _tidied(columns: Columns) -> Columns:
    """PIQA with a capital at the beginning, and the solutions as sentences or their ends."""
    goal = columns["goal"][:1].upper() + columns["goal"][1:]
    change = str.upper if goal.endswith(("?", ".")) else str.lower
    solutions = {name: change(columns[name][:1]) + columns[name][1:] for name in ("sol1", "sol2")}
    return {**columns, "goal": goal, **solutions}


# A variant's name -> the loader whose rows it has, and how its columns differ.
VARIANTS: dict[str, tuple[str, Callable[[Columns], Columns]]] = {
    "hellaswagDataset": ("HellaSwagDataset", _without_activity),
    "HellaswagDataset": ("HellaSwagDataset", _without_activity),
    "hellaswagDataset_V2": ("HellaSwagDataset", lambda row: _letter(_without_activity(row), "label", "label")),
    "HellaswagDataset_V2": ("HellaSwagDataset", lambda row: _letter(_without_activity(row), "label", "label")),
    "HellaswagDataset_V3": ("HellaSwagDataset", lambda row: {**row, "query": row["ctx"], "gold": row["label"]}),
    "piqaDataset_V2": ("PIQADataset", lambda row: _letter(row, "label", "answer")),
    "PIQADatasetV2": ("PIQADataset", lambda row: _letter(row, "label", "answer")),
    "PIQADatasetV3": ("PIQADataset", _tidied),
    "siqaDataset_V2": ("siqaDataset", lambda row: _letter(row, "gold", "label")),
    "SiqaDatasetV3": (
        "siqaDataset",
        lambda row: _letter({**row, **dict(zip("ABC", row["choices"], strict=True))}, "gold", "answer"),
    ),
    "winograndeDataset_V2": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "WinograndeDatasetV2": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "WinograndeDatasetV3": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "BoolQDataset_V2": ("BoolQDataset", dict),
    "BoolQDatasetV2": ("BoolQDataset", dict),
    "OBQADataset_V2": ("OBQADataset", _asked),
    "OBQADatasetV2": ("OBQADataset", _asked),
    "AFQMCDataset_V2": ("AFQMCDataset", lambda row: _letter(row, "label", "label")),
    "AFQMCDatasetV2": ("AFQMCDataset", lambda row: _letter(row, "label", "label")),
    "bustmDataset_V2": ("bustmDataset", lambda row: _letter(row, "label", "label")),
    "bustmDatasetV2": ("bustmDataset", lambda row: _letter(row, "label", "label")),
    "eprstmtDataset_V2": ("eprstmtDataset", lambda row: {**row, "label": "A" if row["label"] == "Positive" else "B"}),
    "eprstmtDatasetV2": ("eprstmtDataset", lambda row: {**row, "label": "A" if row["label"] == "Positive" else "B"}),
}


def adapted(splits: Splits, change: Callable[[Columns], Columns]) -> Splits:
    return {split: [Row(change(row.columns), row.where) for row in rows] for split, rows in splits.items()}
