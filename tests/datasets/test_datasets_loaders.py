"""Rows from files; what is missing or wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoeval.datasets.loaders import load_splits
from autoeval.datasets.rows import DatasetError, Row, Source, subset


def source(directory: Path) -> Source:
    return Source(directory / "data", directory / "config.py")


def write_lines(path: Path, *entries: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_path_is_found_beside_the_configuration_and_under_the_data_directory(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "set" / "a.jsonl", {"q": 1})
    write_lines(tmp_path / "own" / "b.jsonl", {"q": 2})
    for path in ("set/a.jsonl", "./data/set/a.jsonl", "data/set/a.jsonl"):
        assert load_splits("JsonlDataset", Source(tmp_path / "data", tmp_path / "x" / "c.py"), {"path": path})["test"][
            0
        ].columns == {"q": 1}
    splits = load_splits("JsonlDataset", source(tmp_path), {"path": {"train": "set/a.jsonl", "test": "own/b.jsonl"}})
    assert (splits["train"][0]["q"], splits["test"][0]["q"]) == (1, 2)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'nowhere/x\.jsonl' is missing"):
        load_splits("JsonlDataset", source(tmp_path), {"path": "nowhere/x.jsonl"})
    broken = tmp_path / "data" / "b.jsonl"
    broken.parent.mkdir()
    broken.write_text('{"q": 1}\n{"q": \n')
    with pytest.raises(DatasetError, match=r"b\.jsonl:2: not a line of JSON"):
        load_splits("JsonlDataset", source(tmp_path), {"path": "b.jsonl"})
    (tmp_path / "data" / "c.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DatasetError, match=r"c\.csv:3: 1 cells, expected 2"):
        load_splits("CsvDataset", source(tmp_path), {"path": "c.csv"})
    with pytest.raises(ValueError, match="did you mean 'JsonlDataset'"):
        load_splits("JsonlDatset", source(tmp_path), {"path": "b.jsonl"})
    with pytest.raises(ValueError, match="delimeter"):
        load_splits("CsvDataset", source(tmp_path), {"path": "c.csv", "delimeter": ";"})


def test_labels_that_do_not_go_with_the_rows_are_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "piqa" / "dev.jsonl", {"goal": "g", "sol1": "a", "sol2": "b"})
    (tmp_path / "data" / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    with pytest.raises(DatasetError, match=r"dev-labels\.lst: 2 labels for 1 rows"):
        load_splits("PIQADataset", source(tmp_path), {"path": "./data/piqa"})


def test_a_subset_is_always_the_same_and_grows_by_adding() -> None:
    rows = [Row({"q": number}, "f") for number in range(100)]
    ten = [index for index, _ in subset(rows, 10)]
    twenty = [index for index, _ in subset(rows, 20)]
    assert len(ten) == 10 and set(ten) < set(twenty) and ten == sorted(ten)
    assert ten == [index for index, _ in subset(rows, 10)]
    assert len(subset(rows, None)) == len(subset(rows, 1000)) == 100
