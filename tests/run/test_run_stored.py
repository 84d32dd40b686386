"""Predictions that are there: used again when they fit, refused when they do not, and never half of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoeval.tasks.icl import IclTask
from autoeval.tasks.job_data import count_items, load_task
from autoeval.tasks.stored import (
    StoredError,
    check_records,
    complete,
    merged_records,
    origins,
    read_records,
)
from tests.run.conftest import World
from tests.run.test_run_models import job

MODEL = {"type": "HuggingFaceBaseModel", "abbr": "m", "path": "nowhere"}
DATASET = {"abbr": "small"}


@pytest.fixture
def task(world: World, tmp_path: Path) -> IclTask:
    config = job(world, tmp_path, "small")
    return load_task(config["datasets"][0][0], config)


def write(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(number): record for number, record in enumerate(records)}))


def made(expected: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"prediction": str(number), "made_from": origin} for number, origin in enumerate(expected)]


def test_shards_are_joined_and_a_missing_one_is_named(task: IclTask, tmp_path: Path) -> None:
    expected = origins(task, "model")
    records = made(expected)
    folder = tmp_path / "predictions" / "m"
    for number, (start, stop) in enumerate([(0, 8), (8, 16), (16, 20)]):
        write(folder / f"small_{number}.json", records[start:stop])
    assert merged_records(tmp_path / "predictions", MODEL, DATASET, expected) == records
    assert complete(tmp_path / "predictions", MODEL, DATASET, expected)
    (folder / "small_1.json").unlink()
    with pytest.raises(StoredError, match=r"small_1\.json: this shard is missing: 8 of 20 items are there"):
        merged_records(tmp_path / "predictions", MODEL, DATASET, expected)
    assert not complete(tmp_path / "predictions", MODEL, DATASET, expected)
    (folder / "small_0.json").unlink()
    with pytest.raises(StoredError, match=r"small\.json: there are no predictions \(and no shard small_0\.json\)"):
        merged_records(tmp_path / "predictions", MODEL, DATASET, expected)
    write(folder / "small.json", records)  # the whole goes before shards
    assert merged_records(tmp_path / "predictions", MODEL, DATASET, expected) == records
    write(folder / "small.json", records[:7])
    with pytest.raises(StoredError, match=r"small\.json: 7 items, but the data has 20"):
        merged_records(tmp_path / "predictions", MODEL, DATASET, expected)


@pytest.mark.parametrize(
    ("part", "message"), [("data", "the row or"), ("task", "the prompt"), ("model", "another one")]
)
def test_what_does_not_fit_is_refused(task: IclTask, part: str, message: str) -> None:
    expected = origins(task, "model")
    records = made(expected)
    records[4] = {**records[4], "made_from": {**expected[4], part: "other"}}
    with pytest.raises(StoredError, match=f"p.json: item 4 cannot be used again: .*{message}"):
        check_records(Path("p.json"), records, expected)
    with pytest.raises(StoredError, match=r"p\.json: 20 items, but the data has 19"):
        check_records(Path("p.json"), made(expected), expected[:19])
    del records[4]["made_from"]  # OpenCompass's own files
    with pytest.raises(StoredError, match="item 4 does not say what it was made from"):
        check_records(Path("p.json"), records, expected)


@pytest.mark.parametrize("text", ["{", "[]", '{"0": 1}', '{"0": {}, "2": {}}', "\udcff"])
def test_broken_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text, errors="surrogateescape")
    with pytest.raises(StoredError, match=r"p\.json: "):
        read_records(tmp_path / "p.json")


def test_an_edited_row_changes_its_own_item_alone(world: World, tmp_path: Path) -> None:
    config = job(world, tmp_path, "small")
    dataset = config["datasets"][0][0]
    before = origins(load_task(dataset, config), "m")
    rows = world.rows("small")
    rows[5]["q"] += "!"
    (world.root / "data" / "small.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = origins(load_task(dataset, config), "m")
    assert [number for number in range(20) if before[number] != after[number]] == [5]
    dataset["infer_cfg"]["prompt_template"]["template"]["A"] += "."
    assert all(
        new["task"] != old["task"] for new, old in zip(origins(load_task(dataset, config), "m"), before, strict=True)
    )


def test_parts_are_cut_after_the_limit(world: World, tmp_path: Path) -> None:
    config = job(world, tmp_path, "large") | {"limit": 30}
    dataset = config["datasets"][0][0]
    whole = load_task(dataset, config)
    parts = [{**dataset, "test_range": wanted} for wanted in ("[0:16]", "[16:32]")]
    loaded = [load_task(part, config) for part in parts]
    assert [sample for part in loaded for sample in part.samples] == list(whole.samples)
    assert [count_items(part, config) for part in parts] == [16, 14] and count_items(dataset, config) == 30
    own = {**dataset, "reader_cfg": {**dataset["reader_cfg"], "test_range": "[0:10]"}}
    assert count_items(own, config) == len(load_task(own, config).samples) == 10
    with pytest.raises(ValueError, match="leaves no items of 30"):
        load_task({**dataset, "test_range": "[40:50]"}, config)
    with pytest.raises(ValueError, match="expected"):
        load_task({**dataset, "test_range": "40"}, config)
