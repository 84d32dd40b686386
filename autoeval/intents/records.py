"""The data of ``analyze_similar_questions_and_intents``: a JSON list, or JSON lines, of questions with their intents."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RecordError(ValueError):
    """A bad record; the message names the file, the line (counted from 0) and what was expected."""


@dataclass(frozen=True)
class Record:
    """``line`` counts from 0: the physical line of a JSON-lines file, the place in a JSON list."""

    line: int
    instruction: str
    inputs: tuple[str, ...]
    intent: str
    output: str


@dataclass(frozen=True)
class Question:
    """One question of a record; a record with a list of inputs has several."""

    text: str
    record: Record


def read_records(path: Path) -> list[Record]:
    """Raises ``RecordError`` for a bad line or no records at all, ``OSError`` when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n")
        raise RecordError(f"{path}: line {line} (from 0): not UTF-8: {error.reason}") from error
    records = [_record(path, line, value) for line, value in _values(path, text)]
    if not records:
        raise RecordError(f"{path}: no records in it; expected a JSON list, or a JSON object a line")
    return records


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}: line {error.lineno - 1} (from 0): no JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise RecordError(f"{path}: cannot be read: {error}") from error
        yield from enumerate(values)
        return
    for line, content in enumerate(text.split("\n")):
        if not content.strip():
            continue
        try:
            yield line, json.loads(content)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}: line {line} (from 0): no JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}: line {line} (from 0): cannot be read: {error}") from error


def _record(path: Path, line: int, value: Any) -> Record:
    def refuse(why: str) -> RecordError:
        return RecordError(f"{path}: line {line} (from 0): {why}")

    if not isinstance(value, dict):
        raise refuse(f"expected an object with instruction, input, intent and output, found {type(value).__name__}")
    instruction: Any = value.get("instruction", value.get("intruction", ""))
    for key, content in (
        ("instruction", instruction),
        ("intent", value.get("intent")),
        ("output", value.get("output")),
    ):
        if not isinstance(content, str):
            found = "nothing" if content is None else type(content).__name__
            raise refuse(f"{key}: expected a text, found {found}")
    if not value["intent"].strip():
        raise refuse("intent: it is empty")
    inputs = _inputs(value.get("input", ""))
    if inputs is None:
        raise refuse("input: expected a text, or a list of texts (also printed as a text)")
    if not instruction.strip() and not inputs:
        raise refuse("there is no question: instruction and input are empty")
    return Record(line, instruction.strip(), inputs, value["intent"].strip(), value["output"])


def _inputs(value: Any) -> tuple[str, ...] | None:
    """The texts of an input; a text that is a printed list (JSON's or Python's) is that list."""
    if isinstance(value, str):
        text = value.strip()
        listed = _printed_list(text)
        if listed is None:
            return (text,) if text else ()
        value = listed
    if value is not None and not _texts(value):
        return None
    return tuple(text.strip() for text in value or () if text.strip())


def _printed_list(text: str) -> Any:
    """``None`` when ``text`` is not the print of a list of texts."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return listed if _texts(listed) else None


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def questions(records: Sequence[Record]) -> list[Question]:
    """What is compared.

    An instruction that all records with an input share is a prompt and says nothing: the inputs are the questions, each
    for itself. Otherwise the instruction is the question, with the inputs below it.
    """
    with_input = {record.instruction for record in records if record.inputs}
    prompt = len(with_input) == 1 and (len(records) > 1 or "" in with_input)
    found = []
    for record in records:
        if record.inputs and (prompt or not record.instruction):
            found += [Question(text, record) for text in record.inputs]
        else:
            found.append(Question("\n".join((record.instruction, *record.inputs)), record))
    return found
