"""Loaders of single benchmarks, in the layouts that OpenCompass's users have under ``./data``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.rows import DatasetError, Row, Source, read_csv, read_jsonl, read_lines, read_text
from recorder.untrusted import parse_json

Splits = dict[str, list[Row]]

# M3KE's files are named subject-area-level; this many subjects make the whole benchmark.
M3KE_SUBJECTS = 71

# OpenCompass's names of TNEWS's classes, in its order.
TNEWS_LABELS = {
    "news_agriculture": "农业新闻",
    "news_travel": "旅游新闻",
    "news_game": "游戏新闻",
    "news_tech": "科技类别公司新闻",
    "news_sports": "体育类别新闻",
    "news_edu": "初升高教育新闻",
    "news_entertainment": "娱乐圈新闻",
    "news_finance": "投资资讯",
    "news_military": "军事类别常识",
    "news_car": "车辆新闻",
    "news_house": "楼市新闻",
    "news_world": "环球不含中国类别新闻",
    "news_culture": "书籍文化历史类别新闻",
    "news_story": "故事类别新闻",
    "news_stock": "股票市场类别新闻",
}


def load_siqa(source: Source, path: str) -> Splits:
    """A directory with dev.jsonl and dev-labels.lst (1 to 3) -> context, question, answerA..C, choices, label, gold."""
    directory = source.find(path)
    rows = []
    for row, label in with_labels(directory, "dev"):
        if label not in (1, 2, 3):
            raise DatasetError(f"{row.where}: its label is {label}, expected 1, 2 or 3")
        choices = [row["answerA"], row["answerB"], row["answerC"]]
        rows.append(made(row, **row.columns, choices=choices, label=label, gold=label - 1, letter="ABC"[label - 1]))
    return {"test": rows}


def load_truthfulqa(source: Source, path: str) -> Splits:
    """TruthfulQA.csv -> question, best_answer, correct_answers, incorrect_answers (lists), and for ranking mc1_choices
    (the best answer first), mc1_gold (0), mc2_choices (the correct ones first), mc2_gold (their indices)."""
    rows = []
    for row in read_csv(source.find(path)):
        best, right = row["Best Answer"].strip(), _listed(row["Correct Answers"])
        wrong = _listed(row["Incorrect Answers"])
        if not (best and right and wrong):
            raise DatasetError(f"{row.where}: expected a best answer, correct and incorrect answers")
        rows.append(
            made(
                row,
                question=row["Question"].strip(),
                category=row["Category"],
                best_answer=best,
                correct_answers=right,
                incorrect_answers=wrong,
                mc1_choices=[best, *wrong],
                mc1_gold=0,
                mc2_choices=[*right, *wrong],
                mc2_gold=list(range(len(right))),
            )
        )
    return {"test": rows}


def load_bbh(source: Source, path: str, name: str) -> Splits:
    """BIG-Bench Hard: data/<name>.json and lib_prompt/<name>.txt below ``path`` -> input, target, letter, hint.

    ``hint`` is the task's instruction with its worked examples, without the canary line.
    """
    directory = source.find(path)
    directory = directory.parent if directory.name == "data" else directory  # OpenCompass's path is that of data/
    file, prompt = directory / "data" / f"{name}.json", directory / "lib_prompt" / f"{name}.txt"
    examples = _json(file).get("examples")
    if not isinstance(examples, list):
        raise DatasetError(f"{file}: expected an object with a list 'examples'")
    hint = read_text(prompt).split("-----\n", 1)[-1].strip()
    rows = []
    for number, example in enumerate(examples):
        where = f"{file}: example {number}"
        if not isinstance(example, dict) or not {"input", "target"} <= set(example):
            raise DatasetError(f"{where}: expected input and target")
        letter = str(example["target"]).strip("()")
        rows.append(
            Row({"input": example["input"], "target": example["target"], "letter": letter, "hint": hint}, where)
        )
    return {"test": rows}


def load_agieval(source: Source, path: str, name: str, between: str = "\n") -> Splits:
    """AGIEval: <name>.jsonl below ``path`` -> problem (passage, ``between`` and question), options (a line each),
    choices, label."""
    rows = []
    for row in read_jsonl(source.find(path) / f"{name}.jsonl"):
        passage, options = row["passage"] or "", row["options"] or []
        label = row["label"] if row["label"] is not None else row["answer"]
        if isinstance(label, list):
            label = "".join(label)
        if label is None or (options and not set(str(label)) <= set("ABCDEFG"[: len(options)])):
            raise DatasetError(f"{row.where}: the label {label!r} is none of the {len(options)} options")
        rows.append(
            made(
                row,
                problem=(passage + between if passage else "") + row["question"],
                options="\n".join(options),
                choices=[re.sub(r"^\s*\(?[A-G][)．.]\s*", "", option) for option in options],
                label=str(label),
            )
        )
    return {"test": rows}


def load_cmrc(source: Source, path: str) -> Splits:
    """CMRC 2018 or DRCD (SQuAD's layout) -> context, question, answers (each once), id."""
    file = source.find(path)
    content = _json(file)
    rows = []
    for number, article in enumerate(content.get("data") or []):
        for paragraph in article.get("paragraphs") or []:
            for question in paragraph.get("qas") or []:
                answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
                columns = {"context": paragraph["context"], "question": question["question"], "answers": answers}
                rows.append(Row({**columns, "id": question["id"]}, f"{file}: article {number}, {question['id']}"))
    return {"test": rows}


def load_tnews(
    source: Source, path: str | Sequence[str], labels: Mapping[str, str] | None = None, keywords: bool = False
) -> Splits:
    """TNEWS (CLUE's or FewCLUE's) -> sentence, label_desc, letter, keywords as in the file.

    ``labels``: from label_desc to its Chinese name, in order; without them OpenCompass's names and order are taken, and
    rows have the name as label_desc2. ``keywords`` leaves out the headlines whose file entry names no keyword.
    """
    named = {label: {"label_desc2": text} for label, text in TNEWS_LABELS.items()} if labels is None else {}
    labels = TNEWS_LABELS if labels is None else labels
    letters = dict(zip(labels, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False))
    options = "\n".join(f"{letters[name]}. {text}" for name, text in labels.items())
    rows = []
    for row in read_jsonl(source.find(path)):
        if row["label_desc"] not in letters:
            raise DatasetError(f"{row.where}: label_desc {row['label_desc']!r} is none of {', '.join(labels)}")
        if keywords and not row["keywords"].strip():
            continue
        rows.append(
            made(
                row,
                **row.columns,
                letter=letters[row["label_desc"]],
                options=options,
                **named.get(row["label_desc"], {}),
            )
        )
    return {"test": rows}


def load_m3ke(source: Source, path: str, test: str = "test") -> Splits:
    """A directory with dev/ and test/ of one file a subject -> question, A..D, answer, subject, area, level.

    ``test``: the folder that is the test split; examples always come from dev/.
    """
    directory = source.find(path)
    splits: Splits = {}
    for split, folder in {"train": "dev", "test": test}.items():
        files = sorted((directory / folder).glob("*.jsonl"))
        if len(files) != M3KE_SUBJECTS:
            raise DatasetError(f"{directory / folder}: {len(files)} subjects, expected {M3KE_SUBJECTS}")
        splits[split] = [_m3ke(row, file) for file in files for row in read_jsonl(file)]
    return splits


def _m3ke(row: Row, file: Path) -> Row:
    if row["answer"] not in ("A", "B", "C", "D"):
        raise DatasetError(f"{row.where}: the answer is {row['answer']!r}, expected A, B, C or D")
    subject, area, level = file.stem.rsplit("-", 2)
    letters = {letter: row[letter] for letter in "ABCD"}
    return made(row, question=row["question"], answer=row["answer"], subject=subject, area=area, level=level, **letters)


def load_humaneval(source: Source, path: str) -> Splits:
    """human-eval-v2-20210705.jsonl -> task_id, prompt, entry_point, canonical_solution, test."""
    rows = read_jsonl(source.find(path))
    for row in rows:
        for column in ("task_id", "prompt", "entry_point", "test"):
            row[column]
    return {"test": rows}


def load_narrativeqa(source: Source, path: str | Sequence[str], split: str = "test") -> Splits:
    """The repository's qaps.csv and third_party/wikipedia/summaries.csv -> question, evidence (summary), answers."""
    directory = source.find(path)
    summaries = {
        row["document_id"]: row["summary"].strip()
        for row in read_csv(directory / "third_party" / "wikipedia" / "summaries.csv")
    }
    rows = []
    for row in read_csv(directory / "qaps.csv"):
        if row["set"] != split:
            continue
        if row["document_id"] not in summaries:
            raise DatasetError(f"{row.where}: there is no summary of document {row['document_id']}")
        answers = list(dict.fromkeys([row["answer1"].strip(), row["answer2"].strip()]))
        evidence = summaries[row["document_id"]]
        columns = {"question": row["question"].strip(), "evidence": evidence, "answers": answers}
        rows.append(Row({**columns, "document": row["document_id"]}, row.where))
    return {"test": rows}


def load_winograd(source: Source, path: str) -> Splits:
    """The Winograd Schema Challenge as JSON lines (text, pronoun, options, label) -> prompt, pronoun, opt1, opt2, label."""
    rows = []
    for row in read_jsonl(source.find(path)):
        options, label = row["options"], row["label"]
        if not isinstance(options, list) or len(options) != 2 or label not in (0, 1):
            raise DatasetError(f"{row.where}: expected two options and a label 0 or 1")
        rows.append(
            made(row, prompt=row["text"], pronoun=row["pronoun"], opt1=options[0], opt2=options[1], label=label)
        )
    return {"test": rows}


def load_copa(source: Source, path: str) -> Splits:
    """SuperGLUE's COPA -> premise, choice1, choice2, question (cause or effect), connector, choices, label."""
    rows = []
    for row in read_jsonl(source.find(path)):
        if row["question"] not in ("cause", "effect") or row["label"] not in (0, 1):
            raise DatasetError(f"{row.where}: expected a question 'cause' or 'effect' and a label 0 or 1")
        connector = "because" if row["question"] == "cause" else "therefore"
        choices = [row["choice1"], row["choice2"]]
        rows.append(made(row, **row.columns, connector=connector, choices=choices))
    return {"test": rows}


def load_text(source: Source, path: str | Sequence[str], documents: str = "file") -> Splits:
    """Plain text -> text. ``documents``: ``file`` (one), ``line``, ``blank`` (empty lines between), or ``wikitext``
    (articles, each from its heading on)."""
    file = source.find(path)
    text = read_text(file)
    if documents == "wikitext":
        parts = re.split(r"(?m)^(?= = [^=\n]+ = $)", text)
    elif documents in ("line", "blank"):
        parts = re.split(r"\n" if documents == "line" else r"\n\s*\n", text)
    elif documents == "file":
        parts = [text]
    else:
        raise ValueError(f"documents is {documents!r}, expected file, line, blank or wikitext")
    rows = [Row({"text": part}, f"{file}: document {number}") for number, part in enumerate(parts) if part.strip()]
    return {"test": rows}


def with_labels(directory: Path, name: str) -> list[tuple[Row, int]]:
    """Rows of ``<name>.jsonl`` with the numbers in ``<name>-labels.lst``."""
    file = directory / f"{name}-labels.lst"
    rows = read_jsonl(directory / f"{name}.jsonl")
    labels = [line.strip() for line in read_lines(file) if line.strip()]
    if len(labels) != len(rows):
        raise DatasetError(f"{file}: {len(labels)} labels for {len(rows)} rows of {name}.jsonl")
    for number, label in enumerate(labels, start=1):
        if not label.isdigit():
            raise DatasetError(f"{file}:{number}: {label!r} is not an index")
    return [(row, int(label)) for row, label in zip(rows, labels, strict=True)]


def made(row: Row, **columns: Any) -> Row:
    """A row of other columns, from the same place."""
    return Row(columns, row.where)


def _listed(answers: str) -> list[str]:
    return [answer.strip() for answer in answers.split(";") if answer.strip()]


def _json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(file))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: expected a JSON object")
    return content
