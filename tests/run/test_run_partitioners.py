"""Partitioners: OpenCompass's rules on sizes, names and order."""

from __future__ import annotations

from typing import Any

import pytest

from autoeval.datasets.rows import sliced
from autoeval.partitioners import build_partitioner

MODELS = [{"type": "HuggingFaceBaseModel", "abbr": "m", "path": "m"}, {"type": "HuggingFace", "abbr": "n", "path": "n"}]


def dataset(abbr: str, items: int, template: Any = "{q}") -> dict[str, Any]:
    return {
        "abbr": abbr,
        "items": items,
        "reader_cfg": {},
        "infer_cfg": {"prompt_template": {"template": template}},
    }


def partition(options: dict[str, Any], datasets: list[dict[str, Any]], *, models: int = 1, there: Any = ()) -> Any:
    tasks = build_partitioner(options).partition(
        MODELS[:models],
        datasets,
        done=lambda model, one: (model["abbr"], one["abbr"]) in there,
        count=lambda one: len(sliced(range(one["items"]), one.get("test_range", ""))),
        keep={"work_dir": "w"},
    )
    assert all(task["work_dir"] == "w" and len(task["models"]) == len(task["datasets"]) == 1 for task in tasks)
    return [(task["models"][0]["abbr"], [one["abbr"] for one in task["datasets"][0]]) for task in tasks]


def ranges(options: dict[str, Any], data: dict[str, Any]) -> list[str]:
    tasks = build_partitioner(options).partition(
        MODELS[:1], [data], done=lambda model, one: False, count=lambda one: one["items"], keep={}
    )
    return [one["test_range"] for task in tasks for one in task["datasets"][0]]


def test_naive_keeps_the_order_and_leaves_out_what_is_there() -> None:
    data = [dataset(name, 5) for name in "abc"]
    assert partition({"type": "NaivePartitioner"}, data, models=2, there={("m", "b")}) == [
        ("m", ["a"]),
        ("m", ["c"]),
        ("n", ["a"]),
        ("n", ["b"]),
        ("n", ["c"]),
    ]
    assert partition({"type": "opencompass.partitioners.NaivePartitioner", "n": 2}, data) == [
        ("m", ["a", "b"]),
        ("m", ["c"]),
    ]


def test_size_splits_what_is_large_and_packs_what_is_small() -> None:
    # Costs: 20 an item that is generated, one for each label that is ranked, ten times as much for long answers.
    data = [
        dataset("gen", 30),  # 600
        dataset("ranked", 100, {0: "{q} a", 1: "{q} b", 2: "{q} c"}),  # 300
        dataset("gsm8k", 5),  # 5 * 200 = 1000
        dataset("rounds", 10, {"round": [{"role": "HUMAN", "prompt": "{q}"}]}),  # 200: a meta template is generated
    ]
    options = {"type": "SizePartitioner", "max_task_size": 500, "gen_task_coef": 20}
    # gsm8k: 500 // 200 = 2 items a part, ceil(5/2) = 3 parts of ceil(5/3) = 2; gen: 25 a part, 2 parts of 15.
    assert partition(options, data) == [
        ("m", ["gsm8k_0"]),
        ("m", ["gsm8k_1"]),
        ("m", ["gsm8k_2"]),
        ("m", ["gen_0"]),
        ("m", ["gen_1"]),
        ("m", ["ranked", "rounds"]),
    ]
    assert ranges(options, data[2]) == ["[0:2]", "[2:4]", "[4:6]"]
    assert ranges(options, {**data[0], "test_range": "[5:]", "items": 30}) == ["[5:][0:15]", "[5:][15:30]"]
    assert partition({**options, "strategy": "split"}, data[1:2] + data[3:]) == [("m", ["ranked"]), ("m", ["rounds"])]
    assert ("m", ["gsm8k_1"]) not in partition(options, data, there={("m", "gsm8k_1")})


def test_one_item_above_the_limit_is_a_part_of_its_own() -> None:
    options = {"type": "SizePartitioner", "max_task_size": 10, "gen_task_coef": 20}  # OpenCompass divided by zero
    assert ranges(options, dataset("gen", 3)) == ["[0:1]", "[1:2]", "[2:3]"]


def test_number_of_workers_deals_parts_out() -> None:
    options = {"type": "NumWorkerPartitioner", "num_worker": 2}
    data = [dataset("a", 100), dataset("b", 10), dataset("c", 33)]
    assert partition(options, data) == [("m", ["a_0", "b", "c_1"]), ("m", ["a_1", "c_0"])]
    assert ranges(options, dataset("c", 33)) == ["[0:17]", "[17:34]"]  # 16 items at least
    assert partition({**options, "num_worker": 1}, data) == [("m", ["a", "b", "c"])]
    assert partition({**options, "strategy": "split"}, data[:1]) == [("m", ["a_0"]), ("m", ["a_1"])]


def test_every_item_is_in_one_part() -> None:
    for items in (1, 16, 17, 100, 999):
        for options in (
            {"type": "SizePartitioner", "max_task_size": 700, "gen_task_coef": 20},
            {"type": "NumWorkerPartitioner", "num_worker": 7},
        ):
            tasks = build_partitioner(options).partition(
                MODELS[:1],
                [dataset("d", items)],
                done=lambda model, one: False,
                count=lambda one: int(one["items"]),
                keep={},
            )
            parts = [one for task in tasks for one in task["datasets"][0]]
            taken = [i for one in parts for i in sliced(range(items), one.get("test_range", ""))]
            assert sorted(taken) == list(range(items))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "SizePartitoner"}, "did you mean 'SizePartitioner'"),
        ({"type": "SizePartitioner", "max_size": 3}, "unexpected keyword argument 'max_size'"),
        ({"type": "SizePartitioner", "max_task_size": 0}, "max_task_size is 0, expected at least 1"),
        ({"type": "NumWorkerPartitioner", "num_worker": 0}, "num_worker is 0"),
        ({"type": "NaivePartitioner", "n": 0}, "n is 0"),
        ({"type": "SizePartitioner", "strategy": "best"}, "expected heuristic or split"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_partitioner(options)
