"""Rows from files; what is missing or wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoeval.datasets.loaders import load_splits, train_rows
from autoeval.datasets.loaders import test_rows as rows_to_test
from autoeval.datasets.rows import DatasetError, Row, Source, in_range, sliced, subset


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


def test_the_first_of_several_places_is_taken(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpora" / "b.jsonl", {"q": 2})
    (tmp_path / "data").mkdir()
    paths = ["./data/a.jsonl", "./data/../corpora/b.jsonl"]
    assert source(tmp_path).find(paths).name == "b.jsonl"
    with pytest.raises(DatasetError, match=r"'\./data/c\.jsonl' is missing"):
        source(tmp_path).find(["./data/c.jsonl"])


def test_winograd_schemas(tmp_path: Path) -> None:
    schema = {"text": "It fell.", "pronoun": "It", "options": ["the cup", "the table"], "label": 0, "source": "x"}
    write_lines(tmp_path / "data" / "winograd" / "wsc285.jsonl", schema)
    (row,) = load_splits("WinogradDataset", source(tmp_path), {"path": "./data/winograd/wsc285.jsonl"})["test"]
    assert (row["prompt"], row["opt1"], row["opt2"], row["label"]) == ("It fell.", "the cup", "the table", 0)
    write_lines(tmp_path / "data" / "w.jsonl", {**schema, "label": 2})
    with pytest.raises(DatasetError, match=r"w\.jsonl:1: expected two options and a label 0 or 1"):
        load_splits("WinogradDataset", source(tmp_path), {"path": "w.jsonl"})


def test_texts_are_cut_into_documents(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.txt").write_text(" \n = One = \n \n a\n\n = = Part = = \n b\n = Two = \n c\n")

    def documents(kind: str) -> list[str]:
        return [
            row["text"]
            for row in load_splits("TextDataset", source(tmp_path), {"path": "t.txt", "documents": kind})["test"]
        ]

    assert len(documents("file")) == 1
    assert documents("wikitext") == [" = One = \n \n a\n\n = = Part = = \n b\n", " = Two = \n c\n"]
    assert len(documents("line")) == 6 and len(documents("blank")) == 3
    with pytest.raises(ValueError, match="documents is 'page'"):
        documents("page")


def test_a_benchmarks_wrong_labels_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "siqa" / "dev.jsonl", {"context": "c", "question": "q", "answerA": "a"})
    (tmp_path / "data" / "siqa" / "dev-labels.lst").write_text("4\n")
    with pytest.raises(DatasetError, match=r"dev\.jsonl:1: its label is 4"):
        load_splits("siqaDataset", source(tmp_path), {"path": "./data/siqa"})
    write_lines(tmp_path / "data" / "t.json", {"sentence": "s", "label_desc": "news_x"})
    with pytest.raises(DatasetError, match=r"t\.json:1: label_desc 'news_x' is none of news_a"):
        load_splits("TNewsDataset", source(tmp_path), {"path": "t.json", "labels": {"news_a": "A"}})
    exam = {"passage": None, "question": "q", "options": ["(A)1", "(B)2"], "label": "C", "answer": None}
    write_lines(tmp_path / "data" / "exam.jsonl", exam)
    with pytest.raises(DatasetError, match=r"the label 'C' is none of the 2 options"):
        load_splits("AGIEvalDataset", source(tmp_path), {"path": "./data", "name": "exam"})


def test_slices_lie_one_on_the_other() -> None:
    assert list(sliced(range(10), "[2:8][::2]")) == [2, 4, 6]
    assert list(sliced(range(10), "")) == list(range(10))
    with pytest.raises(ValueError, match="expected slices"):
        sliced(range(3), "[0:1]x")
    with pytest.raises(ValueError, match="a number of rows"):
        in_range([Row({}, "f")], -1)


def test_opencompass_variants_have_their_own_columns(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "data" / "h.jsonl", {"query": "Sport: He runs: and", "choices": ["a", "b", "c", "d"], "gold": 2}
    )
    by_type = {
        name: load_splits(name, source(tmp_path), {"path": "h.jsonl"})["test"][0]
        for name in ("HellaSwagDataset", "hellaswagDataset", "opencompass.datasets.HellaswagDataset_V2")
    }
    contexts = [row["ctx"] for row in by_type.values()]
    assert contexts == ["Sport: He runs: and", "and", "He runs: and"]  # its second version cuts once
    assert [row["label"] for row in by_type.values()] == [2, 2, "C"]
    write_lines(tmp_path / "data" / "piqa" / "dev.jsonl", {"goal": "open it", "sol1": "Pull", "sol2": "Push"})
    (tmp_path / "data" / "piqa" / "dev-labels.lst").write_text("1\n")

    def piqa(name: str) -> Row:
        return load_splits(name, source(tmp_path), {"path": "./data/piqa"})["test"][0]

    assert (piqa("PIQADataset")["label"], piqa("PIQADatasetV2")["answer"]) == (1, "B")
    assert (piqa("PIQADatasetV3")["goal"], piqa("PIQADatasetV3")["sol2"]) == ("Open it", "push")


def test_splits_are_found_by_opencompass_names() -> None:
    rows = {"train": [Row({"q": 1}, "f")], "test": [Row({"q": 2}, "f")]}
    for name in ("test", "validation", "val", "dev"):
        assert rows_to_test(rows, name) == rows["test"]
    assert train_rows(rows, "dev") == train_rows(rows, "train") == rows["train"]
    assert train_rows(rows, "none") == []
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        rows_to_test(rows, "tset")
