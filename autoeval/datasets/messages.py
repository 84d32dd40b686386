"""Conversations for fine-tuning and its evaluation, one JSON object a line, in either form that circulates:

{"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "Pong!"}]}
{"instruction": "Translate into French.", "input": "cat", "output": "chat"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoeval.datasets.rows import DatasetError, Row, Source, read_jsonl

ROLES = ("system", "user", "assistant")


def load_messages(source: Source, path: str | Sequence[str] | Mapping[str, str]) -> dict[str, list[Row]]:
    """-> dialogue (messages that end with the assistant's) and reference (the last one's content), for ``ChatInferencer``.

    Raises ``DatasetError`` naming file and line.
    """
    paths = path if isinstance(path, Mapping) else {"test": path}
    return {split: [_row(row) for row in read_jsonl(source.find(file))] for split, file in paths.items()}


def _row(row: Row) -> Row:
    dialogue = conversation(row)
    return Row({"dialogue": dialogue, "reference": dialogue[-1]["content"]}, row.where)


def conversation(row: Row) -> list[dict[str, str]]:
    """The messages of a row, checked: a system message at most at the beginning, then user and assistant in turn,
    the last one the assistant's and not empty. Raises ``DatasetError`` naming the row and what is wrong."""
    columns = row.columns
    if "messages" in columns:
        return _checked(columns["messages"], row.where)
    if "output" in columns and ("instruction" in columns or "input" in columns):
        for key in ("instruction", "input", "output"):
            if not isinstance(columns.get(key, ""), str):
                raise DatasetError(f"{row.where}: '{key}' is {columns[key]!r}, expected a text")
        asked = "\n".join(filter(None, (columns.get("instruction", ""), columns.get("input", ""))))
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": columns["output"]}]
        return _checked(said, row.where)
    have = ", ".join(map(str, columns)) or "nothing"
    raise DatasetError(
        f"{row.where}: expected 'messages', or 'instruction' or 'input' with 'output' (there is: {have})"
    )


def _checked(messages: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise DatasetError(f"{where}: 'messages' is not a list of messages")
    said: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise DatasetError(f"{where}: message {number} is not an object with role and content (a text)")
        role, before = message.get("role"), said[-1]["role"] if said else None
        if role not in ROLES:
            raise DatasetError(f"{where}: message {number} has the role {role!r}, expected one of {', '.join(ROLES)}")
        expected = ("user",) if before in ("system", "assistant") else ("assistant",) if before == "user" else ROLES[:2]
        if role not in expected:
            raise DatasetError(f"{where}: message {number} is the {role}'s, expected the {' or the '.join(expected)}'s")
        said.append({"role": role, "content": message["content"]})
    if said[-1]["role"] != "assistant" or not said[-1]["content"].strip():
        raise DatasetError(f"{where}: the last message is not an answer of the assistant")
    if not said[-2]["content"].strip():
        raise DatasetError(f"{where}: the last question is empty")
    return said
