"""OpenCompass's own configurations call for data in their own ways; each is understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoeval.datasets.loaders import load_splits
from autoeval.datasets.loaders import test_rows as rows_to_test
from autoeval.datasets.rows import Row, Source
from autoeval.tasks.configs import read_configs
from autoeval.tasks.icl import load_icl_task


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "data", tmp_path / "config.py")


def put(source: Source, path: str, *entries: object) -> None:
    file = source.data_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def rows(source: Source, type_: str, **options: Any) -> list[Row]:
    return rows_to_test(load_splits(type_, source, options), "test")


def arc(choices: dict[str, str], answer: str) -> dict[str, Any]:
    listed = [{"label": label, "text": text} for label, text in choices.items()]
    return {"question": {"stem": "why?", "choices": listed}, "answerKey": answer}


def test_names_of_places_since_2024(source: Source) -> None:
    put(source, "lambada/test.jsonl", {"prompt": "a b"})
    assert rows(source, "lambadaDataset", path="opencompass/lambada")[0]["prompt"] == "a b"
    put(source, "own/data.jsonl", {"prompt": "c"})
    assert rows(source, "JsonlDataset", path="own/data.jsonl")[0]["prompt"] == "c"


def test_arc_has_four_choices_with_letters_and_ours_has_all(source: Source) -> None:
    three, four, five = ({label: f"t{label}" for label in labels} for labels in ("ABC", "1234", "ABCDE"))
    path = "ARC/ARC-c/ARC-Challenge-Dev.jsonl"
    put(source, path, arc(three, "A"), arc(four, "3"), arc(five, "E"))
    (only,) = rows(source, "opencompass.datasets.ARCDataset", path="opencompass/ai2_arc-dev", name="ARC-Challenge")
    assert (only["answerKey"], only["textC"]) == ("C", "t3")
    assert [row["gold"] for row in rows(source, "AI2ARCDataset", path=f"./data/{path}")] == [0, 2, 4]


def test_hugging_faces_way_to_name_a_file(source: Source) -> None:
    put(source, "b.jsonl", {"question": "q", "passage": "Title -- long", "label": "true"})
    options = {"path": "json", "data_files": "./data/b.jsonl", "split": "train"}
    splits = load_splits("opencompass.datasets.HFDataset", source, options)
    assert rows_to_test(splits, "train")[0]["label"] == "true"
    (numbered,) = rows(source, "BoolQDataset", **options)
    assert (numbered["answer"], numbered["label"]) == (1, "true")
    (third,) = rows(source, "BoolQDataset_V3", path="./data/b.jsonl")
    assert (third["passage"], third["question"], third["label"]) == ("long", "Q", "true")
    with pytest.raises(ValueError, match=r"'csv' with data_files: expected 'json'"):
        rows(source, "HFDataset", path="csv", data_files="./data/b.jsonl")


def test_directories_of_several_files(source: Source) -> None:
    put(source, "commonsenseqa/dev_rand_split.jsonl", arc({"A": "x", "B": "y"}, "B"))
    assert rows(source, "commonsenseqaDataset", path="./data/commonsenseqa")[0]["answerKey"] == "B"
    (source.data_dir / "BBH" / "data").mkdir(parents=True)
    (source.data_dir / "BBH" / "lib_prompt").mkdir()
    (source.data_dir / "BBH" / "data" / "snarks.json").write_text('{"examples": [{"input": "i", "target": "(A)"}]}')
    (source.data_dir / "BBH" / "lib_prompt" / "snarks.txt").write_text("canary\n-----\nhint")
    assert rows(source, "BBHDataset", path="opencompass/bbh", name="snarks")[0]["hint"] == "hint"
    entry = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}
    put(source, "winogrande/dev.jsonl", entry)
    put(source, "winogrande/train_xs.jsonl", {**entry, "answer": "2"})
    assert load_splits("WinograndeDatasetV3", source, {"path": "./data/winogrande"})["train"][0]["answer"] == "B"


def test_other_variants(source: Source) -> None:
    put(source, "c.jsonl", {"premise": "p", "choice1": "x", "choice2": "y", "question": "cause", "label": 1})
    assert rows(source, "COPADataset_V2", path="c.jsonl")[0]["label"] == "B"
    put(source, "t.json", {"sentence": "s", "label_desc": "news_game"})
    assert rows(source, "TNewsDataset", path="t.json")[0]["label_desc2"] == "游戏新闻"
    assert rows(source, "TNewsDataset_V2", path="t.json")[0]["label_desc2"] == "C"
    item = {"passage": "P", "question": "Q", "options": ["(A)x", "(B)y"], "label": "A", "answer": None}
    put(source, "agieval/sat.jsonl", item)
    options = {"path": "agieval", "name": "sat", "setting_name": "zero-shot"}
    assert rows(source, "AGIEvalDataset_v2", **options)[0]["question"] == "PQ"


def test_a_configuration_may_use_the_standard_library_and_have_k_beside_its_evaluator(
    tmp_path: Path, source: Source
) -> None:
    """os.path has no file of its own in Python 3.11, by which mmengine tells what it may import."""
    put(source, "h.jsonl", {"task_id": "0", "prompt": "p", "entry_point": "e", "test": "t"})
    (tmp_path / "hint.txt").write_text("Do this.")
    file = tmp_path / "humaneval_like.py"
    file.write_text(
        """
import os.path as osp
from os import environ
from opencompass.datasets import HumanevalDataset, HumanEvaluator, humaneval_postprocess
from opencompass.openicl.icl_inferencer import GenInferencer

for _name in ["hint"]:  # as OpenCompass's BBH; at the top of a file mmengine has no other with than read_base
    with open(osp.join(osp.dirname(__file__), f"{_name}.txt")) as f:
        hint = f.read()
h_datasets = [dict(
    abbr="h", type=HumanevalDataset, path="./data/h.jsonl",
    reader_cfg=dict(input_columns=["prompt"], output_column="task_id", train_split="test"),
    infer_cfg=dict(
        prompt_template=dict(type="PromptTemplate", template=hint + "{prompt}"),
        retriever=dict(type="ZeroRetriever"), inferencer=dict(type=GenInferencer, max_out_len=9)),
    eval_cfg=dict(evaluator=dict(type=HumanEvaluator), pred_role="BOT", k=[1, 10],
                  pred_postprocessor=dict(type=humaneval_postprocess)))]
"""
    )
    (config,) = read_configs(file)
    assert config.options["eval_cfg"]["evaluator"]["k"] == [1, 10]
    task = load_icl_task(config, data_dir=source.data_dir)
    assert task.prompting.prompt(task.samples[0].row) == "Do this.p"
