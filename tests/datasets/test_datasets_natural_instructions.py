"""Natural Instructions in its three layouts, and TNEWS's keywords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoeval.datasets.loaders import load_splits
from autoeval.datasets.rows import DatasetError, Source

PASSAGE = "Passage: The owl sat on the wall."
V1 = {
    "Title": "Writing questions",
    "Definition": "Write a question about the passage.",
    "Things to Avoid": "-",
    "Emphasis & Caution": "One answer only.",
    "Prompt": "Write one.",
    "Examples": {"Positive Examples": [{"input": "Passage: A.", "output": "What?", "reason": "good"}] * 3},
    "Instances": [{"input": PASSAGE, "output": ["Who sat on the wall?", "Where was the owl?"]}],
}
V2 = {
    "Definition": ["Write a question about the passage."],
    "Positive Examples": [{"input": "Passage: A.", "output": "What?", "explanation": "good"}],
    "Instances": [{"id": "1", "input": PASSAGE, "output": ["Who sat on the wall?"]}],
}
BIGBENCH = {
    "name": "x",
    "canary": "none",
    "task_prefix": "Write a question about the passage.",
    "examples": [{"input": PASSAGE, "target": "Who sat on the wall?"}],
}


def load(folder: Path, content: Any, **options: Any) -> list[dict[str, Any]]:
    (folder / "task.json").write_text(content if isinstance(content, str) else json.dumps(content))
    source = Source(folder, folder / "config.py")
    splits = load_splits("NaturalInstructionsDataset", source, {"path": "task.json", **options})
    return [row.columns for row in splits["test"]]


def test_the_first_version_has_its_instruction_and_demonstrations(tmp_path: Path) -> None:
    (row,) = load(tmp_path, V1)
    assert row["instruction"] == "Write a question about the passage.\nOne answer only.\nWrite one."
    assert row["demonstrations"] == "Input: Passage: A.\nOutput: What?\n\n" * 2
    assert row["outputs"] == ["Who sat on the wall?", "Where was the owl?"]
    assert load(tmp_path, V1, shown=0)[0]["demonstrations"] == ""


def test_the_second_version_and_bigbenchs(tmp_path: Path) -> None:
    (second,), (big,) = load(tmp_path, V2), load(tmp_path, BIGBENCH)
    assert second["instruction"] == big["instruction"] == "Write a question about the passage."
    assert second["input"] == big["input"] == PASSAGE
    assert second["outputs"] == big["outputs"] == ["Who sat on the wall?"]
    assert (second["demonstrations"], big["demonstrations"]) == ("Input: Passage: A.\nOutput: What?\n\n", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "task.json: not JSON"),
        ({"rows": []}, "expected a list 'examples' .BIG-bench. or 'Instances'"),
        ({**BIGBENCH, "examples": [{"input": "x"}]}, "example 0: expected an object with 'input' and 'target'"),
        ({**V2, "Instances": [{"input": "x", "output": [" "]}]}, "instance 0: 'output' is empty"),
    ],
)
def test_what_is_wrong_is_named(content: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=expected):
        load(tmp_path, content)


def test_headlines_without_keywords_have_none_to_be_compared_with(tmp_path: Path) -> None:
    rows = [
        {"label": 100, "label_desc": "news_story", "sentence": f"标题{place}", "keywords": words}
        for place, words in enumerate(("农村,土葬", "", " "))
    ]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(tmp_path, tmp_path / "config.py")
    whole = load_splits("TNewsDataset", source, {"path": ["gone.json", "dev.json"]})["test"]
    named = load_splits("TNewsDataset", source, {"path": "dev.json", "keywords": True})["test"]
    assert (len(whole), [row["keywords"] for row in named]) == (3, ["农村,土葬"])
