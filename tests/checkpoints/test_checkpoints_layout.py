"""Names, trackers, clocks and ranges: what is looked at in a save directory, and as what."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import TRACKER, Save, look, put, write

from autoeval.checkpoints import detect_format, fingerprint, iteration_of, read_tracker


def iterations(root: Path, **options: Any) -> list[int]:
    return [checkpoint.iteration for checkpoint in look(root, **options).complete]


@pytest.fixture
def torch_dist(saves: Callable[[str], tuple[Save, Save]]) -> Save:
    return saves("torch_dist")[0]


def test_the_tracker_may_go_back(tmp_path: Path, torch_dist: Save) -> None:
    """A run restarted from iteration 2 leaves later, whole saves behind."""
    for iteration in (2, 4, 6):
        put(torch_dist, tmp_path, iteration, age=30.0 - iteration)
    write(tmp_path / TRACKER, b"2", 1.0)
    assert iterations(tmp_path) == [2, 4, 6]


@pytest.mark.parametrize(("late", "age", "expected"), [(1.0, 90.0, [4]), (1.0, 10.0, []), (30.0, 90.0, [])])
def test_clocks_of_nodes_may_differ_a_little(
    late: float, age: float, expected: list[int], tmp_path: Path, torch_dist: Save
) -> None:
    directory = put(torch_dist, tmp_path, 4, age=age + late)
    write(directory / "__0_1.distcp", torch_dist.files["__0_1.distcp"], age)
    assert iterations(tmp_path) == expected
    if not expected:
        assert "touch .metadata" in look(tmp_path).waiting[0][1]
        os.utime(directory / ".metadata")
        write(tmp_path / TRACKER, b"4", 0.0)
        assert iterations(tmp_path) == [4]


def test_one_bad_entry_hides_no_other(tmp_path: Path, torch_dist: Save) -> None:
    put(torch_dist, tmp_path, 2)
    (tmp_path / "iter_0000004").symlink_to("iter_0000004")
    (tmp_path / "iter_0000006").write_text("a file")
    (tmp_path / "iter_0000008").symlink_to("nowhere")
    assert iterations(tmp_path) == [2]


def test_what_comes_after_the_tracker_does_not_make_another_checkpoint(tmp_path: Path, torch_dist: Save) -> None:
    directory = put(torch_dist, tmp_path, 4)
    before = fingerprint(directory)
    write(directory / "tokenizer" / "vocab.json", b"{}", 0.0)
    write(directory / "run_config.yaml", b"{}", 0.0)
    assert fingerprint(directory) == before
    assert iterations(tmp_path) == [4]


@pytest.mark.parametrize(
    ("begin", "end", "interval", "expected"),
    [(2, None, 2, [2, 4, 6, 8]), (4, 6, 2, [4, 6]), (2, None, 4, [2, 6]), (10, None, 2, []), (3, None, 1, [4, 6, 8])],
)
def test_begin_end_interval(tmp_path: Path, torch_dist: Save, begin, end, interval, expected) -> None:
    for iteration in (2, 4, 6, 8):
        put(torch_dist, tmp_path, iteration, age=20.0 - iteration)
    assert iterations(tmp_path, begin=begin, end=end, interval=interval) == expected


def test_release_and_foreign_entries(tmp_path: Path, torch_dist: Save) -> None:
    put(torch_dist, tmp_path, 4, age=30.0)
    (tmp_path / "iter_0000004").rename(tmp_path / "release")
    (tmp_path / "iter_12").mkdir()
    (tmp_path / "progress.txt").write_text("x")
    write(tmp_path / TRACKER, b"release", 1.0)
    assert read_tracker(tmp_path) == "release"
    assert look(tmp_path).waiting == ()
    assert iterations(tmp_path, begin=0) == [0]
    assert [iteration_of(name) for name in ("iter_0002000", "iter_12345678", "release", "iter_20")] == [
        2000,
        12345678,
        0,
        None,
    ]


@pytest.mark.parametrize("torn", [b"", b"12x", b"\x00\x00", b"-5"])
def test_a_torn_tracker_is_nothing(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / TRACKER).write_bytes(torn)
    assert read_tracker(tmp_path) is None


def test_zarr_is_named_as_unsupported_not_as_abandoned(tmp_path: Path) -> None:
    write(tmp_path / "iter_0000002" / "metadata.json", b'{"sharded_backend": "zarr"}', 5.0)
    write(tmp_path / TRACKER, b"2", 0.0)
    found = look(tmp_path)
    assert (found.complete, found.waiting, found.abandoned) == ((), (), ())
    ((iteration, reason),) = found.unsupported
    assert iteration == 2 and "zarr" in reason


def test_a_malicious_rank_file_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    path = tmp_path / "iter_0000004" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    write(tmp_path / TRACKER, b"4", 0.0)
    assert iterations(tmp_path) == []
    assert not marker.exists()


@pytest.mark.parametrize("layout", ["huggingface_shards", "huggingface_bin"])
@pytest.mark.parametrize("name", ["checkpoint-4", "step_4", "iter_0000004", "global_step_4"])
def test_hugging_face_directories(
    layout: str, name: str, tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    now = time.time()
    put(saves(layout)[0], tmp_path, 4, age=2.0).rename(tmp_path / name)
    assert look(tmp_path).complete == ()
    (checkpoint,) = look(tmp_path, model_type="huggingface").complete
    assert (checkpoint.iteration, checkpoint.path) == (4, tmp_path / name)
    assert checkpoint.format == detect_format(tmp_path / name) == "huggingface"
    write(tmp_path / name / "tokenizer.json", b"{}", 0.0)
    assert look(tmp_path, model_type="huggingface", now=now + 0.1).complete == ()  # it has changed just now
    assert len(look(tmp_path, model_type="huggingface", seconds_later=0.6).complete) == 1


@pytest.mark.parametrize("model_type", ["megatron", "huggingface"])
def test_the_wrong_model_type_is_said(
    model_type: str, tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    save, _ = saves("huggingface_shards" if model_type == "megatron" else "fsdp_dtensor")
    put(save, tmp_path, 4, age=2.0).rename(tmp_path / "iter_0000004")
    ((iteration, reason),) = look(tmp_path, model_type=model_type).unsupported
    other = "huggingface" if model_type == "megatron" else "megatron"
    assert iteration == 4 and f"--model-type {other}" in reason


@pytest.mark.slow
def test_what_transformers_saves_is_complete_and_no_part_of_it(tmp_path: Path) -> None:
    """With weights in shards and in one file; file by file in the order of their times, and in the opposite one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=128, n_positions=32))
    for number, size in enumerate(("40KB", "1GB")):
        source = tmp_path / f"source{number}"
        model.save_pretrained(source, max_shard_size=size)
        files = sorted(source.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        needed = {path.name for path in files} - {"generation_config.json"}
        assert ("model.safetensors.index.json" in needed) == (size == "40KB")
        for way, ordered in enumerate((files, files[::-1])):
            root = tmp_path / f"{number}{way}"
            there: set[str] = set()
            for file in ordered:
                content = file.read_bytes()
                for length in (0, len(content) // 2, len(content) - 2, len(content)):  # JSON ends with a line feed
                    if file.name in needed and not needed <= there:
                        write(root / "checkpoint-4" / file.name, content[:length], 2.0)
                        found = look(root, model_type="huggingface", seconds_later=1000.0).complete
                        whole = length == len(content) and needed <= there | {file.name}
                        assert bool(found) == whole, f"{file.name} has {length} bytes"
                there.add(file.name)
