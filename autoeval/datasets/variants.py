"""OpenCompass's variants of a loader: the same file, with the columns that its configurations of that name expect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from autoeval.datasets.rows import Row

logger = logging.getLogger(__name__)

Columns = dict[str, Any]
Splits = dict[str, list[Row]]


def _letter(columns: Columns, source: str, target: str) -> Columns:
    return {**columns, target: "ABCDE"[int(columns[source])]}


def _without_activity(columns: Columns, colons: int = 2) -> Columns:
    """HellaSwag's context without the activity before the colon (its first version also cuts at the next one)."""
    return {**columns, "ctx": columns["ctx"].split(": ", colons)[-1]}


def _four_choices(columns: Columns) -> Columns | None:
    """ARC's items of four choices; all have letters, also those numbered 1 to 4."""
    return {**columns, "answerKey": columns["letter"]} if len(columns["choices"]) == 4 else None


def _numbered(columns: Columns) -> Columns:
    """BoolQ's answer as 1 or 0."""
    yes = columns["label"] == "A"
    return {**columns, "label": "true" if yes else "false", "answer": int(yes)}


def _without_title(columns: Columns) -> Columns:
    """BoolQ's passage without its title, and the question with a capital."""
    passage, question = columns["passage"].partition(" -- ")[2], columns["question"]
    label = "true" if columns["label"] == "A" else "false"
    return {**columns, "passage": passage, "question": question[:1].upper() + question[1:], "label": label}


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
VARIANTS: dict[str, tuple[str, Callable[[Columns], Columns | None]]] = {
    "ARCDataset": ("AI2ARCDataset", _four_choices),
    "AGIEvalDataset_v2": ("AGIEvalDataset", lambda row: {**row, "question": row["problem"]}),
    "BoolQDataset": ("SuperGLUEBoolQDataset", _numbered),
    "BoolQDataset_V3": ("SuperGLUEBoolQDataset", _without_title),
    "BoolQDatasetV3": ("SuperGLUEBoolQDataset", _without_title),
    "COPADataset_V2": ("COPADataset", lambda row: _letter(row, "label", "label")),
    "COPADatasetV2": ("COPADataset", lambda row: _letter(row, "label", "label")),
    "TNewsDataset_V2": ("TNewsDataset", lambda row: {**row, "label_desc2": row["letter"]}),
    "TNewsDatasetV2": ("TNewsDataset", lambda row: {**row, "label_desc2": row["letter"]}),
    "hellaswagDataset": ("HellaSwagDataset", _without_activity),
    "HellaswagDataset": ("HellaSwagDataset", _without_activity),
    "hellaswagDataset_V2": ("HellaSwagDataset", lambda row: _letter(_without_activity(row, 1), "label", "label")),
    "hellaswagDataset_V3": ("HellaSwagDataset", lambda row: {**row, "query": row["ctx"], "gold": row["label"]}),
    "HellaswagDataset_V2": ("HellaSwagDataset", lambda row: _letter(_without_activity(row, 1), "label", "label")),
    "HellaswagDataset_V3": ("HellaSwagDataset", lambda row: {**row, "query": row["ctx"], "gold": row["label"]}),
    "piqaDataset_V2": ("PIQADataset", lambda row: _letter(row, "label", "answer")),
    "PIQADatasetV2": ("PIQADataset", lambda row: _letter(row, "label", "answer")),
    "piqaDataset_V3": ("PIQADataset", _tidied),
    "PIQADatasetV3": ("PIQADataset", _tidied),
    "siqaDataset_V2": ("siqaDataset", lambda row: _letter(row, "gold", "label")),
    "SiqaDatasetV3": (
        "siqaDataset",
        lambda row: _letter({**row, **dict(zip("ABC", row["choices"], strict=True))}, "gold", "answer"),
    ),
    "winograndeDataset_V2": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "WinograndeDatasetV2": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "WinograndeDatasetV3": ("WinograndeDataset", lambda row: _letter(row, "gold", "answer")),
    "BoolQDataset_V2": ("SuperGLUEBoolQDataset", dict),
    "BoolQDatasetV2": ("SuperGLUEBoolQDataset", dict),
    "OBQADataset_V2": ("OBQADataset", _asked),
    "OBQADatasetV2": ("OBQADataset", _asked),
    "AFQMCDataset_V2": ("AFQMCDataset", lambda row: _letter(row, "label", "label")),
    "AFQMCDatasetV2": ("AFQMCDataset", lambda row: _letter(row, "label", "label")),
    "bustmDataset_V2": ("bustmDataset", lambda row: _letter(row, "label", "label")),
    "bustmDatasetV2": ("bustmDataset", lambda row: _letter(row, "label", "label")),
    "eprstmtDataset_V2": ("eprstmtDataset", lambda row: {**row, "label": "A" if row["label"] == "Positive" else "B"}),
    "EprstmtDatasetV2": ("eprstmtDataset", lambda row: {**row, "label": "A" if row["label"] == "Positive" else "B"}),
    "eprstmtDatasetV2": ("eprstmtDataset", lambda row: {**row, "label": "A" if row["label"] == "Positive" else "B"}),
}


def adapted(splits: Splits, change: Callable[[Columns], Columns | None]) -> Splits:
    """The rows as ``change`` makes them, without those of which it makes nothing (as OpenCompass leaves them out)."""
    made: Splits = {}
    for split, rows in splits.items():
        changed = [(change(row.columns), row.where) for row in rows]
        made[split] = [Row(columns, where) for columns, where in changed if columns is not None]
        if len(made[split]) < len(rows):
            logger.info(
                "%d of %d items have not four choices and are left out", len(rows) - len(made[split]), len(rows)
            )
    return made
