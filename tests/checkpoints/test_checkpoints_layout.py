"""A checkpoint is complete when, and only when, its save has ended: every prefix of the writing is incomplete."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from autoeval.checkpoints import ScanResult, Watcher, detect_format, fingerprint, iteration_of, read_tracker, unchanged

TRACKER = "latest_checkpointed_iteration.txt"


def look(root: Path, **options: Any) -> ScanResult:
    settings: dict[str, Any] = {
        "token_per_iteration": 0.5,
        "begin": 2,
        "end": None,
        "interval": 2,
        "check_interval_seconds": 60.0,
    }
    settings |= options
    return Watcher(root, "gpt", **settings).scan()


def iterations(root: Path, **options: Any) -> list[int]:
    return [checkpoint.iteration for checkpoint in look(root, **options).complete]


@pytest.fixture(scope="session")
def torch_dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a save by torch.distributed.checkpoint in Megatron's layout, in the order Megatron writes them."""
    import torch
    import torch.distributed.checkpoint as dcp

    directory = tmp_path_factory.mktemp("torch_dist")
    state = {"decoder.layers.weight": torch.zeros(2, 3, 4), "embedding.weight": torch.ones(5, 4)}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory, thread_count=2), no_dist=True)
    shards = sorted(directory.glob("*.distcp"))
    assert len(shards) == 2
    torch.save({"args": argparse.Namespace(num_layers=2)}, directory / "common.pt")
    order = ["common.pt", *(shard.name for shard in shards), ".metadata"]
    files = {name: (directory / name).read_bytes() for name in order}
    return files | {"metadata.json": b'{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'}


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a legacy save with TP 2 and PP 2."""
    import numpy
    import torch

    path = tmp_path_factory.mktemp("torch") / "model_optim_rng.pt"
    arguments = argparse.Namespace(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, expert_model_parallel_size=1, lr=torch.float32
    )
    state = torch.nn.Linear(3, 3).state_dict()
    assert isinstance(state, OrderedDict)
    content = {"args": arguments, "checkpoint_version": 3.0, "model": state, "rng_state": [numpy.arange(3)]}
    torch.save(content, path)
    ranks = ("mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001")
    return {f"{rank}/model_optim_rng.pt": path.read_bytes() for rank in ranks}


def write(path: Path, content: bytes, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = time.time() - age
    os.utime(path, (moment, moment))


def save(root: Path, iteration: int, files: dict[str, bytes], *, age: float = 1.0) -> Path:
    """Write a whole save; its files are ``age`` seconds old, each a millisecond younger than the one before."""
    directory = root / f"iter_{iteration:07d}"
    for number, (name, content) in enumerate(files.items()):
        write(directory / name, content, age - number * 1e-3)
    write(root / TRACKER, str(iteration).encode(), age - len(files) * 1e-3)
    return directory


@pytest.mark.parametrize("layout", ["torch_dist", "legacy"])
@pytest.mark.parametrize("former_tracker", [None, b"", b"2"])
def test_no_prefix_of_a_save_is_complete(
    layout: str, former_tracker: bytes | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files: dict[str, bytes] = request.getfixturevalue(layout)
    if former_tracker is not None:
        write(tmp_path / TRACKER, former_tracker, 5.0)
    directory = tmp_path / "iter_0000004"
    directory.mkdir()
    for name, content in files.items():
        assert iterations(tmp_path) == []
        for length in (0, len(content) // 2, len(content) - 1):
            write(directory / name, content[:length], 1.0)
            assert iterations(tmp_path) == [], f"{name} cut to {length} bytes"
        write(directory / name, content, 1.0)
    found = look(tmp_path)
    assert found.complete == ()
    assert [iteration for iteration, _ in found.waiting] == [4]
    write(tmp_path / TRACKER, b"", 0.5)
    assert iterations(tmp_path) == []
    write(tmp_path / TRACKER, b"4", 0.5)
    (checkpoint,) = look(tmp_path).complete
    assert (checkpoint.iteration, checkpoint.path, checkpoint.tokens) == (4, directory, 2.0)
    assert checkpoint.format == {"torch_dist": "torch_dist", "legacy": "torch"}[layout]


@pytest.mark.parametrize("layout", ["torch_dist", "legacy"])
def test_a_save_in_place_is_not_complete_until_its_end_and_then_another(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """For seconds all old marks are valid and the new shards already have their final sizes."""
    files: dict[str, bytes] = request.getfixturevalue(layout)
    directory = save(tmp_path, 4, files, age=30.0)
    (before,) = look(tmp_path).complete
    for number, (name, content) in enumerate(files.items()):
        write(directory / name, content, 2.0 - number * 1e-3)
        assert iterations(tmp_path) == [], name
    assert not unchanged(before)
    write(tmp_path / TRACKER, b"4", 1.0)
    (after,) = look(tmp_path).complete
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("order", [["__0_0.distcp", ".metadata", "metadata.json"], ["metadata.json", ".metadata"]])
def test_a_checkpoint_that_is_being_deleted_is_not_complete(
    order: list[str], tmp_path: Path, torch_dist: dict[str, bytes]
) -> None:
    directory = save(tmp_path, 4, torch_dist, age=30.0)
    assert iterations(tmp_path) == [4]
    for name in order:
        (directory / name).unlink()
        assert iterations(tmp_path) == []


def test_a_legacy_rank_that_is_missing_is_named(tmp_path: Path, legacy: dict[str, bytes]) -> None:
    directory = save(tmp_path, 4, legacy, age=100.0)
    shutil.rmtree(directory / "mp_rank_01_000")
    ((_, reason),) = look(tmp_path).waiting
    assert "mp_rank_01_000" in reason and "TP 2, PP 2" in reason


def test_the_tracker_may_go_back(tmp_path: Path, torch_dist: dict[str, bytes]) -> None:
    """A run restarted from iteration 2 leaves later, whole saves behind."""
    for iteration in (2, 4, 6):
        save(tmp_path, iteration, torch_dist, age=30.0 - iteration)
    write(tmp_path / TRACKER, b"2", 1.0)
    assert iterations(tmp_path) == [2, 4, 6]


def test_a_crashed_save_is_abandoned_once_a_later_one_is_complete(tmp_path: Path, torch_dist: dict[str, bytes]) -> None:
    torn = tmp_path / "iter_0000002"
    write(torn / "__0_0.distcp", torch_dist["__0_0.distcp"], 300.0)
    os.utime(torn, (time.time() - 300.0,) * 2)
    assert [i for i, _ in look(tmp_path).waiting] == [2]
    save(tmp_path, 4, torch_dist)
    found = look(tmp_path)
    assert [c.iteration for c in found.complete] == [4]
    ((iteration, reason),) = found.abandoned
    assert iteration == 2 and ".metadata" in reason


@pytest.mark.parametrize(("late", "age", "expected"), [(1.0, 90.0, [4]), (1.0, 10.0, []), (30.0, 90.0, [])])
def test_clocks_of_nodes_may_differ_a_little(
    late: float, age: float, expected: list[int], tmp_path: Path, torch_dist: dict[str, bytes]
) -> None:
    directory = save(tmp_path, 4, torch_dist, age=age + late)
    write(directory / "__0_1.distcp", torch_dist["__0_1.distcp"], age)
    assert iterations(tmp_path) == expected


def test_one_bad_entry_hides_no_other(tmp_path: Path, torch_dist: dict[str, bytes]) -> None:
    save(tmp_path, 2, torch_dist)
    (tmp_path / "iter_0000004").symlink_to("iter_0000004")
    (tmp_path / "iter_0000006").write_text("a file")
    (tmp_path / "iter_0000008").symlink_to("nowhere")
    assert iterations(tmp_path) == [2]


def test_two_asynchronous_saves_in_flight(tmp_path: Path, torch_dist: dict[str, bytes]) -> None:
    """Seen in reality: shards of 4 were full while 2 had no .metadata."""
    for iteration in (2, 4):
        for name in ("__0_0.distcp", "__0_1.distcp"):
            write(tmp_path / f"iter_{iteration:07d}" / name, torch_dist[name], 20.0)
    assert [i for i, _ in look(tmp_path).waiting] == [2, 4]
    save(tmp_path, 2, torch_dist)
    assert iterations(tmp_path) == [2]


def test_what_comes_after_the_tracker_does_not_make_another_checkpoint(
    tmp_path: Path, torch_dist: dict[str, bytes]
) -> None:
    directory = save(tmp_path, 4, torch_dist)
    before = fingerprint(directory)
    write(directory / "tokenizer" / "vocab.json", b"{}", 0.0)
    write(directory / "run_config.yaml", b"{}", 0.0)
    assert fingerprint(directory) == before
    assert iterations(tmp_path) == [4]


@pytest.mark.parametrize(
    ("begin", "end", "interval", "expected"),
    [(2, None, 2, [2, 4, 6, 8]), (4, 6, 2, [4, 6]), (2, None, 4, [2, 6]), (10, None, 2, []), (3, None, 1, [4, 6, 8])],
)
def test_begin_end_interval(tmp_path: Path, torch_dist: dict[str, bytes], begin, end, interval, expected) -> None:
    for iteration in (2, 4, 6, 8):
        save(tmp_path, iteration, torch_dist, age=20.0 - iteration)
    assert iterations(tmp_path, begin=begin, end=end, interval=interval) == expected


def test_release_and_foreign_entries(tmp_path: Path, torch_dist: dict[str, bytes]) -> None:
    save(tmp_path, 4, torch_dist, age=30.0)
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


def _safetensors(values: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(values)


@pytest.mark.parametrize("name", ["checkpoint-4", "step_4", "iter_0000004"])
def test_hugging_face_directories(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {
        "config.json": b'{"model_type": "gpt2"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": _safetensors(10),
        "model-00002-of-00002.safetensors": _safetensors(20),
    }
    for file, content in files.items():
        write(directory / file, content[:-1], 5.0)
        assert iterations(tmp_path, model_type="huggingface") == []
        write(directory / file, content, 5.0)
    (checkpoint,) = look(tmp_path, model_type="huggingface").complete
    assert checkpoint.format == detect_format(directory) == "huggingface"
    write(directory / "model-00002-of-00002.safetensors", files["model-00002-of-00002.safetensors"], 0.0)
    assert iterations(tmp_path, model_type="huggingface") == []  # has changed just now


def test_a_malicious_rank_file_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    path = tmp_path / "iter_0000004" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    write(tmp_path / TRACKER, b"4", 0.0)
    assert iterations(tmp_path) == []
    assert not marker.exists()


def test_looking_again_at_ten_thousand_files_takes_under_a_second(
    tmp_path: Path, torch_dist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2000
    first = save(tmp_path, 2, torch_dist, age=100.0)
    for iteration in range(4, 2 * count + 2, 2):
        directory = tmp_path / f"iter_{iteration:07d}"
        directory.mkdir()
        for name in torch_dist:
            os.link(first / name, directory / name)
    write(tmp_path / TRACKER, str(2 * count).encode(), 1.0)
    watcher = Watcher(
        tmp_path, "gpt", token_per_iteration=None, begin=2, end=None, interval=2, check_interval_seconds=60.0
    )
    assert len(watcher.scan().complete) == count
    reads: list[Path] = []
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads.append(path)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    started = time.process_time()
    assert len(watcher.scan().complete) == count
    assert time.process_time() - started < 1.0
    assert reads == []
