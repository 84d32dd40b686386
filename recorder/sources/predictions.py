"""A CSV file a task, with a model's answer to each question: as MMLU's answers of fine-tuned models are published.

The columns ``question``, ``answer`` (a letter, or its place from 0 on) and ``prediction`` (a letter) are needed;
``choice0``, ``choice1``, … say how many options there are. Others (the prompt) are not read. The items are kept, so that
two checkpoints are compared question by question.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recorder.sources.measurement import Measured, Measurement, SourceError, iteration_in
from recorder.statistics import mean, standard_error

PATTERNS = ("*.csv",)
NEEDED = ("question", "answer", "prediction")


def read_predictions(files: Sequence[Path]) -> list[Measurement]:
    """Files that lie together are one measurement. Raises ``SourceError`` naming file and line."""
    found: dict[tuple[Path, int | None], Measurement] = {}
    for one in map(_read, files):
        place = one.path.parent, one.iteration
        known = found.setdefault(place, one)
        if known is not one:
            twice = next((task for task in one.tasks if task in known.tasks), None)
            if twice is not None:
                raise SourceError(f"{one.path}: a second file of {twice}; expected one a task and checkpoint")
            found[place] = replace(known, tasks=known.tasks | one.tasks, chance=known.chance | one.chance)
    return list(found.values())


def _read(path: Path) -> Measurement:
    """The accuracy ``acc`` of the task that the file is named after."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            missing = [name for name in NEEDED if name not in columns]
            if missing:
                raise SourceError(f"{path}: line 1: expected the columns {', '.join(NEEDED)}; {missing[0]} is missing")
            choices = [name for name in columns if re.fullmatch(r"choice\d+", name)]
            outcomes: dict[str, float] = {}
            for line in reader:
                key = _key([line["question"] or "", *(line[name] or "" for name in choices)])
                if key in outcomes:
                    raise SourceError(f"{path}: line {reader.line_num}: the same question comes twice")
                right = _letter(f"{path}: line {reader.line_num}", line["answer"])
                outcomes[key] = float((line["prediction"] or "").strip().upper() == right)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV: {error}") from error
    if not outcomes:
        raise SourceError(f"{path}: there is no question in it")
    task = re.sub(r"_results?$", "", path.stem)
    values = list(outcomes.values())
    items = {f"{task}/{key}": value for key, value in outcomes.items()}
    measured = Measured(mean(values), standard_error(values), len(values), items=items)
    chance = {task: 1 / len(choices)} if len(choices) > 1 else {}
    return Measurement(path, iteration_in(path.name, path.parent.name), {task: {"acc": measured}}, chance=chance)


def _key(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _letter(where: str, answer: str | None) -> str:
    text = (answer or "").strip().upper()
    if re.fullmatch(r"\d{1,2}", text) and int(text) < 26:
        return chr(ord("A") + int(text))
    if not re.fullmatch(r"[A-Z]", text):
        raise SourceError(f"{where}: answer: expected a letter, or its place from 0 on, found {answer!r}")
    return text
