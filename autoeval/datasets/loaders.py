"""Dataset loaders: the files that OpenCompass's users have under ``./data``, and the user's own.

A loader gets the options of its configuration and answers with rows per split. Data that is not there or not whole is
a ``DatasetError`` naming the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.benchmarks import (
    load_agieval,
    load_bbh,
    load_cmrc,
    load_copa,
    load_humaneval,
    load_m3ke,
    load_narrativeqa,
    load_siqa,
    load_text,
    load_tnews,
    load_truthfulqa,
    load_winograd,
    made,
    with_labels,
)
from autoeval.datasets.messages import load_messages
from autoeval.datasets.names import class_name, look_up
from autoeval.datasets.natural_instructions import load_natural_instructions
from autoeval.datasets.opencompass import understood
from autoeval.datasets.rows import DatasetError, Row, Source, read_csv, read_json, read_jsonl
from autoeval.datasets.variants import VARIANTS, adapted

logger = logging.getLogger(__name__)

Splits = dict[str, list[Row]]
Paths = str | Sequence[str] | Mapping[str, str]

# MMLU's subjects are those its development files name; this many make the whole benchmark.
MMLU_SUBJECTS = 57


def load_jsonl(source: Source, path: Paths) -> Splits:
    """Columns are the objects' keys. ``path``: the test file, or a mapping from split to file."""
    return _per_split(source, path, read_jsonl)


def load_json(source: Source, path: Paths) -> Splits:
    return _per_split(source, path, read_json)


def load_csv(source: Source, path: Paths, columns: Sequence[str] | None = None, delimiter: str = ",") -> Splits:
    """``columns`` names the columns of a file without a header line."""
    return _per_split(source, path, lambda file: read_csv(file, columns, delimiter))


def load_hellaswag(source: Source, path: Paths) -> Splits:
    """``query``, four ``choices``, ``gold`` -> ctx, A, B, C, D, choices, label (index)."""

    def read(file: Path) -> list[Row]:
        return [
            made(
                row,
                ctx=row["query"],
                choices=row["choices"],
                label=row["gold"],
                letter=_letter(row["gold"]),
                **_lettered(row, row["choices"], 4),
            )
            for row in read_jsonl(file)
        ]

    return _per_split(source, path, read)


def load_boolq(source: Source, path: Paths) -> Splits:
    """SuperGLUE's BoolQ -> question, passage, label ("A" for yes, "B" for no), answer ("yes", "no")."""

    def read(file: Path) -> list[Row]:
        rows = []
        for row in read_jsonl(file):
            yes = {"true": True, "false": False}.get(str(row["label"]).lower())
            if yes is None:
                raise DatasetError(f"{row.where}: 'label' is {row['label']!r}, expected true or false")
            rows.append(
                made(
                    row,
                    question=row["question"],
                    passage=row["passage"],
                    label="A" if yes else "B",
                    answer="yes" if yes else "no",
                )
            )
        return rows

    return _per_split(source, path, read)


def load_piqa(source: Source, path: str) -> Splits:
    """A directory with dev.jsonl and dev-labels.lst -> goal, sol1, sol2, choices, answer (index; label is the same)."""
    return {
        split: [
            made(
                row,
                goal=row["goal"],
                sol1=row["sol1"],
                sol2=row["sol2"],
                choices=[row["sol1"], row["sol2"]],
                answer=a,
                label=a,
                letter=_letter(a),
            )
            for row, a in with_labels(source.find(path), name)
        ]
        for split, name in _present(source.find(path), {"train": "train", "test": "dev"})
    }


def load_winogrande(source: Source, path: str) -> Splits:
    """A directory with dev.jsonl -> sentence, prefix, suffix, ending, opt1, opt2, choices, answer (1 or 2), gold (index).

    ``prefix`` is what comes before the blank, ``suffix`` what follows it, ``ending`` the same without outer spaces.
    """

    def read(file: Path) -> list[Row]:
        rows = []
        for row in read_jsonl(file):
            prefix, blank, suffix = row["sentence"].partition("_")
            if not blank or str(row["answer"]) not in ("1", "2"):
                raise DatasetError(f"{row.where}: expected a sentence with a blank (_) and an answer 1 or 2")
            options = [row["option1"], row["option2"]]
            rows.append(
                made(
                    row,
                    sentence=row["sentence"],
                    prompt=row["sentence"],
                    only_option1=options[0],
                    only_option2=options[1],
                    prefix=prefix,
                    suffix=suffix,
                    ending=suffix.strip(),
                    opt1=prefix + options[0] + suffix,
                    opt2=prefix + options[1] + suffix,
                    choices=options,
                    answer=int(row["answer"]),
                    gold=int(row["answer"]) - 1,
                )
            )
        return rows

    directory = source.find(path)
    return {
        split: read(directory / f"{name}.jsonl")
        for split, name in _present(directory, {"train": "train_xs", "test": "dev"})
    }


def load_arc(source: Source, path: Paths) -> Splits:
    """AI2's ARC, OpenBookQA and CommonsenseQA -> question, choices, gold (index), answerKey; three to five choices.

    For prompts that show them: A, B, C ... (as many as there are; textA ... are the same), options (a line each), letter
    (the gold's).
    """

    def read(file: Path) -> list[Row]:
        rows = []
        for row in read_jsonl(file):
            question = row["question"]
            labels = [str(choice["label"]) for choice in question["choices"]]
            if str(row["answerKey"]) not in labels:
                raise DatasetError(f"{row.where}: answerKey {row['answerKey']!r} is none of {', '.join(labels)}")
            choices = [choice["text"] for choice in question["choices"]]
            gold = labels.index(str(row["answerKey"]))
            lettered = dict(zip("ABCDE", choices, strict=False))
            named = {f"text{letter}": text for letter, text in lettered.items()}
            rows.append(
                made(
                    row,
                    question=question["stem"],
                    question_stem=question["stem"],
                    choices=choices,
                    gold=gold,
                    answerKey=str(row["answerKey"]),
                    options="\n".join(f"{letter}. {text}" for letter, text in lettered.items()),
                    letter="ABCDE"[gold],
                    **lettered,
                    **named,
                )
            )
        return rows

    return _per_split(source, path, read)


def load_commonsenseqa(source: Source, path: Paths) -> Splits:
    """As ``load_arc``; ``path`` may be the directory of dev_rand_split.jsonl, with or without train_rand_split.jsonl."""
    directory = source.find(path) if isinstance(path, str) else None
    if directory is None or not directory.is_dir():
        return load_arc(source, path)
    names = {"train": "train_rand_split", "test": "dev_rand_split"}
    return load_arc(source, {split: str(directory / f"{name}.jsonl") for split, name in _present(directory, names)})


def load_mmlu(source: Source, path: str, subjects: Sequence[str] | str = "all", name: str | None = None) -> Splits:
    """A directory with dev/ and test/ -> input, A, B, C, D, target ("A" ... "D"), subject, topic (subject in words).

    ``subjects``: names; ``all`` 57 (one that is missing is an error); or ``available``, those with a test file.
    ``name`` is a single subject, as OpenCompass has it.
    """
    subjects = subjects if name is None else [name]
    directory = source.find(path)
    known = sorted(file.name.removesuffix("_dev.csv") for file in (directory / "dev").glob("*_dev.csv"))
    if subjects == "all" and len(known) != MMLU_SUBJECTS:
        raise DatasetError(f"{directory / 'dev'}: {len(known)} subjects, expected {MMLU_SUBJECTS}")
    chosen = known if isinstance(subjects, str) else list(subjects)
    if subjects == "available":
        chosen = [subject for subject in known if (directory / "test" / f"{subject}_test.csv").exists()]
        logger.info("%s: %d of %d subjects have a test file", directory, len(chosen), len(known))
    missing = [subject for subject in chosen if not (directory / "test" / f"{subject}_test.csv").exists()]
    if missing:
        wanted = directory / "test" / f"{missing[0]}_test.csv"
        hint = "; mmlu_available_ppl and its like take those that are there" if len(chosen) > 1 else ""
        raise DatasetError(f"{wanted}: the file is missing ({len(missing)} of {len(chosen)} subjects are){hint}")

    def read(split: str, subject: str) -> list[Row]:
        rows = read_csv(directory / split / f"{subject}_{split}.csv", ["input", "A", "B", "C", "D", "target"])
        for row in rows:
            if row["target"] not in ("A", "B", "C", "D"):
                raise DatasetError(f"{row.where}: the answer is {row['target']!r}, expected A, B, C or D")
        more = {"subject": subject, "topic": subject.replace("_", " ")}
        return [made(row, **{**row.columns, "input": row["input"].strip()}, **more) for row in rows]

    pairs = {"train": "dev", "test": "test"}
    return {name: [row for subject in chosen for row in read(split, subject)] for name, split in pairs.items()}


def load_gsm8k(source: Source, path: str) -> Splits:
    """A directory with train.jsonl and test.jsonl -> question, answer."""
    directory = source.find(path)
    return {split: read_jsonl(directory / f"{split}.jsonl") for split in ("train", "test")}


LOADERS: dict[str, Callable[..., Splits]] = {
    "JsonlDataset": load_jsonl,
    "JsonDataset": load_json,
    "CsvDataset": load_csv,
    "HellaSwagDataset": load_hellaswag,
    "SuperGLUEBoolQDataset": load_boolq,
    "PIQADataset": load_piqa,
    "piqaDataset": load_piqa,
    "WinograndeDataset": load_winogrande,
    "winograndeDataset": load_winogrande,
    "AI2ARCDataset": load_arc,
    "MMLUDataset": load_mmlu,
    "LambadaDataset": load_jsonl,
    "lambadaDataset": load_jsonl,
    "GSM8KDataset": load_gsm8k,
    "siqaDataset": load_siqa,
    "OBQADataset": load_arc,
    "commonsenseqaDataset": load_commonsenseqa,
    "HFDataset": load_jsonl,
    "COPADataset": load_copa,
    "TruthfulQADataset": load_truthfulqa,
    "BBHDataset": load_bbh,
    "AGIEvalDataset": load_agieval,
    "AFQMCDataset": load_jsonl,
    "CMRCDataset": load_cmrc,
    "TNewsDataset": load_tnews,
    "bustmDataset": load_jsonl,
    "eprstmtDataset": load_jsonl,
    "M3KEDataset": load_m3ke,
    "HumanevalDataset": load_humaneval,
    "MessagesDataset": load_messages,
    "NarrativeQADataset": load_narrativeqa,
    "NaturalInstructionsDataset": load_natural_instructions,
    "WinogradDataset": load_winograd,
    "TextDataset": load_text,
}


def load_splits(type_: Any, source: Source, options: Mapping[str, Any]) -> Splits:
    """Rows per split. Raises ``DatasetError`` for missing data and ``ValueError`` for unknown types and options."""
    base, change = VARIANTS.get(class_name(type_), (type_, None))
    options = understood(class_name(type_), options)
    loader = look_up(LOADERS, base, "dataset type")
    try:
        splits = loader(source, **options)
    except TypeError as error:
        raise ValueError(f"{source.config_file}: {type_}: {error}") from error
    return splits if change is None else adapted(splits, change)


# What OpenCompass's configurations call the two splits that a loader gives. ``dev`` is either, as it is used.
_TRAIN_NAMES = ("train", "dev", "train_xs")
_TEST_NAMES = ("test", "dev", "val", "valid", "validation", "train")


def train_rows(splits: Splits, name: str) -> list[Row]:
    """The rows for examples, by the name that ``reader_cfg`` has for them; none when there is no such split."""
    if name not in splits and name in _TRAIN_NAMES:
        name = "train"
    return splits.get(name, [])


def test_rows(splits: Splits, name: str) -> list[Row]:
    """The rows to be tested, by the name that ``reader_cfg`` has for them. Raises ``ValueError`` for an unknown one."""
    if name not in splits and name in _TEST_NAMES:
        name = "test"
    if name not in splits:
        raise ValueError(f"there is no split '{name}' (there are: {', '.join(splits)})")
    return splits[name]


def _per_split(source: Source, path: Paths, read: Callable[[Path], list[Row]]) -> Splits:
    paths = path if isinstance(path, Mapping) else {"test": path}
    return {split: read(source.find(file)) for split, file in paths.items()}


def _present(directory: Path, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Splits whose file is there; ``test`` must be."""
    return [(split, name) for split, name in names.items() if split == "test" or (directory / f"{name}.jsonl").exists()]


def _lettered(row: Row, choices: Any, count: int) -> dict[str, str]:
    if not isinstance(choices, list) or len(choices) != count:
        raise DatasetError(f"{row.where}: expected a list of {count} choices")
    return dict(zip("ABCDE", choices, strict=False))


def _letter(index: Any) -> str:
    """The letter of a choice; of what is no index, nothing (the ranking's check of labels names the row)."""
    return "ABCDE"[index] if isinstance(index, int) and 0 <= index < 5 else ""
