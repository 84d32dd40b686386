"""One's own dataset in a few lines; the list of datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from autoeval.tasks.icl import IclTask, load_icl_tasks, run_icl_task
from autoeval.tasks.listing import list_datasets
from tests.tasks.test_tasks_icl import model

__all__ = ["model"]  # the fixture: a GPT-2 and a Llama
DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "opencompass"
ROWS = [
    {"q": "the sky", "options": ["blue", "a cat"], "gold": 0},
    {"q": "who", "options": ["the fox", "mat"], "gold": 1},
]
CSV = "question,A,B,right\nWhat is the sky?,blue,mat,A\n12 + 30?,no,42,B\n"


def load(directory: Path, **options: Any) -> IclTask:
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "rows.csv").write_text(CSV)
    (directory / "text.jsonl").write_text(json.dumps({"text": "The quick brown fox."}) + "\n")
    (directory / "own.py").write_text(f"own_datasets = [{options!r}]\n")
    return load_icl_tasks([str(directory / "own.py")], data_dir=directory)[0]


CHOICES = {"answer": "gold", "choices": "options"}
LETTERS = {"answer": "right", "choices": ["A", "B"]}
KINDS: list[tuple[dict[str, Any], set[str]]] = [
    ({"path": "rows.jsonl", "columns": CHOICES, "template": "Q: {q}\nA:", "metric": "acc"}, {"acc", "acc_norm"}),
    ({"path": "rows.jsonl", "columns": CHOICES, "template": "Q: {q}\nA:", "metric": "ppl"}, {"acc"}),
    ({"path": "rows.csv", "columns": LETTERS, "template": "{question}", "metric": "acc_norm"}, {"acc", "acc_norm"}),
    ({"path": "rows.csv", "columns": LETTERS, "template": "{question}", "metric": "ppl"}, {"acc"}),
    ({"path": "rows.csv", "columns": {"answer": "A"}, "template": "{question}", "metric": "f1"}, {"f1"}),
    ({"path": "text.jsonl", "template": "{text}", "metric": "bpb"}, {"bpb", "word_perplexity"}),
]


@pytest.mark.parametrize(("options", "metrics"), KINDS)
def test_a_few_lines_make_a_dataset(options: dict[str, Any], metrics: set[str], model: Any, tmp_path: Path) -> None:
    if options["metric"] == "f1":
        options = {**options, "max_out_len": 4}
    task = load(tmp_path, **options)
    assert task.name == options["path"].split(".")[0]
    assert metrics <= {score.metric for score in run_icl_task(task, model).scores}


def test_the_prompts_are_what_one_expects(tmp_path: Path) -> None:
    paths = {"test": "rows.jsonl", "train": "rows.jsonl"}
    task = load(tmp_path, path=paths, columns=CHOICES, template="Q: {q}\nA:", metric="acc", shots=1, abbr="mine")
    sample = task.samples[1]
    assert task.name == "mine"
    text = task.prompting.prompt(sample.row, task.prompting.ice(sample.examples))
    assert text + task.prompting.answer(sample.row, 1) == "Q: the sky\nA: blue\n\nQ: who\nA: mat"
    task = load(tmp_path, path="rows.csv", columns=LETTERS, template="{question}", metric="ppl")
    assert task.prompting.prompt(task.samples[1].row, label="B") == "12 + 30? 42"
    task = load(tmp_path, path="rows.csv", columns={"answer": "A"}, template="{question}", metric="f1")
    assert task.prompting.prompt(task.samples[0].row, blank=True) == "What is the sky?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "rows.jsonl", "template": "x", "metric": "acc"}, "columns lacks answer"),
        ({"path": "rows.jsonl", "columns": CHOICES, "template": "x", "metric": "f1"}, "does not go with choices"),
        ({"path": "rows.jsonl", "columns": {"gold": "a"}, "template": "x", "metric": "f1"}, "unknown key 'gold'"),
        ({"path": "rows.jsonl", "template": "x"}, "lacks metric"),
        ({"path": "rows.parquet", "template": "x", "metric": "bpb"}, r"expected a name that ends in \.jsonl"),
        ({"path": "rows.jsonl", "template": "x", "metric": "bpb", "shot": 1}, "unknown key 'shot'"),
        ({"path": "rows.jsonl", "columns": {"answer": "q"}, "template": "x", "metric": "bleurt"}, "metric 'bleurt'"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"own\.py: own_datasets.*{message}"):
        load(tmp_path, **options)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
def test_the_list_has_numbers_and_reasons() -> None:
    listed = {one.abbr: one for one in list_datasets(DATA)}
    numbers = {"hellaswag": 2500, "BoolQ": 1500, "CMRC_dev": 3219, "openai_humaneval": 164, "m3ke": 355, "piqa": 1000}
    assert {name: listed[name].items for name in numbers} == numbers
    assert listed["siqa"].name == "siqa_ppl"
    assert listed["mmlu"].items is None and "37 of 57 subjects" in str(listed["mmlu"].problem)
    assert listed["winograd"].items is None and "is missing" in str(listed["winograd"].problem)


def test_a_broken_configuration_is_listed_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "broken.py").write_text("x = [")
    (tmp_path / "datasets" / "_part.py").write_text("x = 1")
    (one,) = list_datasets(tmp_path, tmp_path)
    assert (one.name, one.items) == ("broken", None) and "cannot be read" in str(one.problem)
