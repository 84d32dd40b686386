"""Disk space of converted models: what is kept, and how room is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autoeval.tasks.converted import NoRoomError, converted_models, keep_newest, make_room, sweep

MB = 10**6


def model(run: Path, iteration: int, size: int = MB, name: str = "hf") -> Path:
    directory = run / f"iter_{iteration:07d}" / name
    directory.mkdir(parents=True)
    with (directory / "model.safetensors").open("wb") as stream:
        stream.truncate(size)
    return directory


def iterations(run: Path) -> list[int]:
    return [int(path.parent.name.removeprefix("iter_")) for path in converted_models(run)]


def test_the_newest_are_kept_and_what_is_in_use(tmp_path: Path) -> None:
    used = model(tmp_path, 900)
    for iteration in (1000, 2000, 10_000_000):
        model(tmp_path, iteration)
    model(tmp_path, 100, name="hf.quarantined"), model(tmp_path, 200, name="hf.quarantined")
    keep_newest(tmp_path, 1, {used})
    assert iterations(tmp_path) == [900, 10_000_000]
    assert [path.parent.name for path in tmp_path.glob("*/hf.quarantined")] == ["iter_0000200"]
    keep_newest(tmp_path, 0, ())
    assert iterations(tmp_path) == []


def test_the_budget_removes_the_oldest_first_and_never_the_target(tmp_path: Path) -> None:
    for iteration in (100, 200, 300):
        model(tmp_path, iteration)
    make_room(tmp_path / "iter_0000100" / "hf", MB, 3 * MB)  # made again: its own old one counts for nothing
    assert iterations(tmp_path) == [100, 200, 300]
    (tmp_path / "iter_0000400").mkdir()
    make_room(tmp_path / "iter_0000400" / "hf", MB, int(2.5 * MB))
    assert iterations(tmp_path) == [300]
    with pytest.raises(NoRoomError, match=r"takes 0.003 GB, model.converted_disk_gb allows 0.0025 GB"):
        make_room(tmp_path / "iter_0000400" / "hf", 3 * MB, int(2.5 * MB))
    assert iterations(tmp_path) == [300]


def test_a_disk_that_cannot_hold_it_costs_no_other_model(tmp_path: Path) -> None:
    model(tmp_path, 100)
    (tmp_path / "iter_0000200").mkdir()
    with pytest.raises(NoRoomError, match="make room and run"):
        make_room(tmp_path / "iter_0000200" / "hf", 2 * shutil.disk_usage(tmp_path).total, None)
    assert iterations(tmp_path) == [100]


def test_what_a_killed_conversion_left_is_swept(tmp_path: Path) -> None:
    model(tmp_path, 100)
    model(tmp_path, 100, name=".hf.partial-77")
    model(tmp_path, 200, name=".hf.old-77")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["hf"]


def test_what_a_killed_worker_was_writing_is_swept_where_nobody_is_at_work(tmp_path: Path) -> None:
    for iteration in (100, 200):
        for place in ("", "results/gpt", "predictions/gpt"):
            directory = tmp_path / f"iter_0000{iteration}" / place
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".mmlu.json.abc123.tmp").write_text("{")
            (directory / "mmlu.json").write_text("{}")
    sweep(tmp_path, {tmp_path / "iter_0000200"})
    assert sorted(path.parts[-2] for path in tmp_path.rglob("*.tmp")) == ["gpt", "gpt", "iter_0000200"]
    assert not list((tmp_path / "iter_0000100").rglob("*.tmp")) and len(list(tmp_path.rglob("mmlu.json"))) == 6
