"""The summary: rows, groups with their errors, and what is said where a number is missing."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from autoeval.summarizers import build_summarizer

MODELS = [
    {"type": "HuggingFaceBaseModel", "abbr": "m", "path": "m"},
    {"type": "HuggingFaceBaseModel", "abbr": "n", "path": "n"},
]
DATASETS: list[dict[str, Any]] = [
    {"abbr": name, "infer_cfg": {"inferencer": {"type": "PPLInferencer"}}} for name in ("a", "b", "c")
]
RESULTS = {
    ("m", "a"): {"accuracy": 50.0, "accuracy_stderr": 3.0, "n": 100, "mode": "ppl", "version": "aaaaaaaabbbb"},
    ("m", "b"): {"bleu": 1.0, "accuracy": 80.0, "accuracy_stderr": 4.0, "n": 300, "mode": "ppl", "version": "cccccccc"},
    ("n", "a"): {"accuracy": 60.0, "accuracy_stderr": 3.0, "n": 100, "mode": "ppl", "version": "aaaaaaaabbbb"},
}


def summarize(tmp_path: Path, options: dict[str, Any], **more: Any) -> list[list[str]]:
    for (model, dataset), result in RESULTS.items():
        path = tmp_path / "results" / model / f"{dataset}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    reasons = {tmp_path / "results" / "n" / "b.json": "inference killed by SIGKILL"}
    build_summarizer(options).summarize(tmp_path, MODELS, DATASETS, stamp="20260101_000000", reasons=reasons, **more)
    with (tmp_path / "summary" / "summary_20260101_000000.csv").open(newline="") as stream:
        return list(csv.reader(stream))


def test_every_metric_is_a_row_and_what_is_missing_says_why(tmp_path: Path) -> None:
    rows = summarize(tmp_path, {}, failures=["OpenICLInfer[n/b] killed by SIGKILL\nlog: x\n    the last line"])
    assert rows == [
        ["dataset", "version", "metric", "mode", "m", "n"],
        ["a", "aaaaaa", "accuracy", "ppl", "50.00 ± 3.00", "60.00 ± 3.00"],
        ["b", "cccccc", "accuracy", "ppl", "80.00 ± 4.00", "missing: inference killed by SIGKILL"],
        ["b", "cccccc", "bleu", "ppl", "1.00", "missing: inference killed by SIGKILL"],
        ["c", "-", "-", "ppl", "missing: no result", "missing: no result"],
    ]
    text = (tmp_path / "summary" / "summary_20260101_000000.txt").read_text()
    assert text.startswith(f"20260101_000000\ntabulate format\n{'^' * 128}\ndataset")
    for part in ("csv format", "markdown format", "raw format", "THIS IS A DIVIDER", "failures", "the last line"):
        assert part in text
    table = (tmp_path / "summary" / "summary_20260101_000000.md").read_text()
    assert "| a | aaaaaa | accuracy | ppl | 50.00 ± 3.00 | 60.00 ± 3.00 |" in table


def test_groups_have_both_averages_with_their_errors(tmp_path: Path) -> None:
    group = {"name": "ab", "subsets": ["a", ["b", "accuracy"]], "std": True}
    rows = {(row[0], row[2]): row[4:] for row in summarize(tmp_path, {"summary_groups": [group]})}
    assert rows["ab", "naive_average"][0] == f"65.00 ± {math.sqrt(9 + 16) / 2:.2f}"
    # By their number of items: (50 * 100 + 80 * 300) / 400.
    assert rows["ab", "weighted_average"][0] == f"72.50 ± {math.sqrt(300**2 + 1200**2) / 400:.2f}"
    assert rows["ab", "standard_deviation"][0] == f"{math.sqrt(450):.2f}"
    assert rows["ab", "naive_average"][1] == "missing: missing datasets: b"
    weighted = {"name": "ab", "subsets": ["a", "b"], "weights": {"a": 3, "b": 1}}
    rows = {(row[0], row[2]): row[4:] for row in summarize(tmp_path, {"summary_groups": [weighted]})}
    assert rows["ab", "weighted_average"][0].startswith("57.50 ±")


def test_rows_that_were_chosen(tmp_path: Path) -> None:
    group = {"name": "abz", "subsets": ["a", "z"]}
    heading = "--------- 考试 Exam ---------"  # as OpenCompass's summarizers have them
    options = {"dataset_abbrs": [heading, ["b", "bleu"], "a", "abz"], "summary_groups": [group]}
    first, *rows = summarize(tmp_path, options)[1:]
    assert first == [heading, *"-----"]
    assert [row[0] for row in rows] == ["b", "a", "abz"] and rows[0][4] == "1.00"
    assert rows[2][4] == "missing: missing datasets: z"
    # Nobody asked for it, and the run has a part of it only: no row.
    assert "abz" not in {row[0] for row in summarize(tmp_path, {"summary_groups": [group]})}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summary_groups": [{"name": "x"}]}, "a summary group is dict"),
        ({"summary_groups": [{"name": "x", "subsets": ["a"], "weight": {}}]}, "unknown key 'weight'"),
        ({"summary_groups": [{"name": "x", "subsets": ["a"], "weights": {"b": 1}}]}, "do not name the same datasets"),
        ({"dataset_abbrs": [1]}, "dataset_abbrs holds 1"),
        ({"type": "CircularSummarizer"}, "unknown summarizer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_summarizer(options)
