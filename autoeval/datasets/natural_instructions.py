"""Natural Instructions: a task in words, examples of it, and instances to be done (arXiv 2104.08773).

Two layouts circulate: BIG-bench's ``task.json`` (``task_prefix`` and ``examples`` with ``input`` and ``target``), and
the collection's own file (``Definition`` and others, ``Positive Examples``, ``Instances`` with ``input`` and
``output``), in its first and second version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.rows import DatasetError, Row, Source, read_text
from recorder.untrusted import parse_json

# What the collection says about a task, in the order in which it is shown.
_SAID = ("Definition", "Emphasis & Caution", "Things to Avoid", "Prompt")


def load_natural_instructions(source: Source, path: str | Sequence[str], shown: int = 2) -> dict[str, list[Row]]:
    """-> instruction, demonstrations (the first ``shown`` of the file's own positive examples), input, outputs (a list).

    In BIG-bench's layout the examples are the instances; there are no demonstrations. ``path``: the file, or the
    directory of a ``task.json``; of several the first that is there. Raises ``DatasetError`` naming file and entry.
    """
    file = source.find(path)
    if file.is_dir():
        file = file / "task.json"
    try:
        content = parse_json(read_text(file))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{file}: not JSON: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("examples"), list):
        rows = list(_of_bigbench(file, content))
    elif isinstance(content, Mapping) and isinstance(content.get("Instances"), list):
        rows = list(_of_collection(file, content, shown))
    else:
        raise DatasetError(f"{file}: expected a list 'examples' (BIG-bench) or 'Instances' (Natural Instructions)")
    return {"test": rows}


def _of_bigbench(file: Path, content: Mapping[str, Any]) -> Iterator[Row]:
    instruction = str(content.get("task_prefix") or content.get("description") or "").strip()
    for number, entry in enumerate(content["examples"]):
        where = f"{file}: example {number}"
        yield _row(where, entry, "target", instruction, "")


def _of_collection(file: Path, content: Mapping[str, Any], shown: int) -> Iterator[Row]:
    instruction = "\n".join(filter(None, (_text(content.get(key)) for key in _SAID)))
    examples = content.get("Positive Examples")
    if examples is None:
        examples = (content.get("Examples") or {}).get("Positive Examples") or []
    if not isinstance(examples, list) or not all(isinstance(one, Mapping) for one in examples):
        raise DatasetError(f"{file}: 'Positive Examples' is not a list of objects")
    demonstrations = "".join(
        f"Input: {_text(one.get('input'))}\nOutput: {_text(one.get('output'))}\n\n" for one in examples[:shown]
    )
    for number, entry in enumerate(content["Instances"]):
        yield _row(f"{file}: instance {number}", entry, "output", instruction, demonstrations)


def _row(where: str, entry: Any, answer: str, instruction: str, demonstrations: str) -> Row:
    if not isinstance(entry, Mapping) or "input" not in entry or answer not in entry:
        raise DatasetError(f"{where}: expected an object with 'input' and '{answer}'")
    found = entry[answer] if isinstance(entry[answer], list) else [entry[answer]]
    outputs = list(dict.fromkeys(text for text in map(_text, found) if text))
    if not outputs:
        raise DatasetError(f"{where}: '{answer}' is empty")
    columns = {"instruction": instruction, "demonstrations": demonstrations, "input": _text(entry["input"])}
    return Row({**columns, "outputs": outputs}, where)


def _text(value: Any) -> str:
    """Version 2 has lists of strings, and ``-`` stands for nothing."""
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
    return "" if text.strip() == "-" else text.strip()
