"""What is pinned stays readable whatever the training run deletes, and a rewrite never goes unseen."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import LAYOUTS, Save, put, write

from autoeval.checkpoints import (
    Checkpoint,
    CheckpointChanged,
    CheckpointVanished,
    fingerprint,
    pinned,
    sweep_pins,
    unchanged,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    import torch
    import torch.distributed.checkpoint as dcp

    path = tmp_path / "save" / "iter_0000002"
    dcp.save({"decoder.weight": torch.arange(4)}, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    (path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text("{}")
    return Checkpoint("org/gpt", 2, path, "torch_dist", fingerprint(path))


def test_a_pinned_checkpoint_outlives_its_deletion(checkpoint: Checkpoint, tmp_path: Path) -> None:
    staging = tmp_path / "pins"
    content = (checkpoint.path / "__0_0.distcp").read_bytes()
    with pinned(checkpoint, staging) as held:
        shutil.rmtree(checkpoint.path)
        assert held.path.parent == staging
        assert (held.path / "__0_0.distcp").read_bytes() == content
        assert (held.path / "tokenizer" / "vocab.json").exists()
        assert unchanged(held)
        assert not unchanged(checkpoint)
    assert list(staging.iterdir()) == []


def test_a_rewrite_in_place_is_seen_through_the_pin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pinned(checkpoint, tmp_path / "pins") as held:
        shard = checkpoint.path / "__0_0.distcp"
        content, times = shard.read_bytes(), shard.stat()
        shard.write_bytes(content)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        assert not unchanged(held)


@pytest.mark.parametrize("gone", ["", "__0_0.distcp", ".metadata"])
def test_a_checkpoint_that_is_gone_has_vanished(checkpoint: Checkpoint, tmp_path: Path, gone: str) -> None:
    if gone:
        (checkpoint.path / gone).unlink()
    else:
        shutil.rmtree(checkpoint.path)
    with pytest.raises(CheckpointVanished, match="iter_0000002"), pinned(checkpoint, tmp_path / "pins"):
        pass


def test_another_save_has_changed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    os.utime(checkpoint.path / "__0_0.distcp")
    with pytest.raises(CheckpointChanged), pinned(checkpoint, tmp_path / "pins"):
        pass


def test_a_save_that_begins_during_the_linking_is_seen(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def slow_link(source: str, target: Path) -> None:
        link(source, target)
        os.utime(checkpoint.path / "__0_0.distcp")

    monkeypatch.setattr(os, "link", slow_link)
    with pytest.raises(CheckpointChanged), pinned(checkpoint, tmp_path / "pins"):
        pass


@pytest.mark.parametrize("successes", [0, 2])
@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSPC, errno.EROFS])
def test_where_links_are_impossible_it_is_read_in_place(
    code: int,
    successes: int,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = os.link
    calls: list[str] = []

    def refuse(source: str, target: Path) -> None:
        calls.append(source)
        if len(calls) > successes:
            raise OSError(code, os.strerror(code), source)
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.WARNING), pinned(checkpoint, tmp_path / "pins") as held:
        assert held == checkpoint
        assert not list((tmp_path / "pins").glob("*/*"))  # half a pin would only be mistaken for a whole one
        shutil.rmtree(checkpoint.path)
        assert not unchanged(held)  # who read it in place knows that it went away
    assert "read in place" in caplog.text and os.strerror(code) in caplog.text


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
def test_a_deletion_during_the_linking_is_seen(
    code: int, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late_link(source: str, target: Path) -> None:
        if source.endswith(".distcp"):
            shutil.rmtree(checkpoint.path)
            raise OSError(code, os.strerror(code), source)
        link(source, target)

    monkeypatch.setattr(os, "link", late_link)
    with pytest.raises(CheckpointVanished, match="deleted before it could be pinned"):
        pinned(checkpoint, tmp_path / "pins").__enter__()
    assert list((tmp_path / "pins").iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "left_out"),
    [
        (
            "torch_tp2_pp2_vpp2",
            [f"mp_rank_{rank}/distrib_optim.pt" for rank in ("00_000", "00_001", "01_000", "01_001")],
        ),
        ("huggingface_shards", ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "global_step4/zero.pt"]),
        ("torch_dist", ["hf/model.safetensors"]),
    ],
)
def test_what_no_conversion_reads_is_not_held(
    layout: str, left_out: list[str], tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    """After retention a pin would hold the optimizer, which is several times the model."""
    save, _ = saves(layout)
    path = put(save, tmp_path / "save", 4, age=100.0)
    for name in (*left_out, "tokenizer/tokenizer.json"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"0")
    checkpoint = Checkpoint("gpt", 4, path, save.format, fingerprint(path))
    with pinned(checkpoint, tmp_path / "pins") as held:
        there = {str(file.relative_to(held.path)) for file in held.path.rglob("*") if file.is_file()}
        assert there == ({*save.files, *save.after, "tokenizer/tokenizer.json"} - set(left_out))
        assert all((path / name).stat().st_nlink == 1 for name in left_out)
        assert unchanged(held)
        shutil.rmtree(path)
        assert unchanged(held)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_save_in_place_while_pinned_never_goes_unseen(
    layout: str, tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    """A link is the same file: its new content shows through, whichever file the new save has reached."""
    old, new = saves(layout)
    for name in old.weights:
        root = tmp_path / name.replace("/", "_")
        path = put(old, root, 4, age=100.0)
        checkpoint = Checkpoint("gpt", 4, path, old.format, fingerprint(path))
        with pinned(checkpoint, root / "pins") as held:
            if name == ".metadata":  # the one file that is renamed into place
                write(path / "temporary", new.files[name], 0.0)
                (path / "temporary").rename(path / name)
                assert (held.path / name).read_bytes() == old.files[name]
            else:
                write(path / name, new.files[name], 0.0)
                assert not unchanged(held)
            assert not unchanged(checkpoint)


def test_links_to_files_are_held_by_what_they_point_to(checkpoint: Checkpoint, tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    shutil.copytree(checkpoint.path, kept)
    shutil.rmtree(checkpoint.path)
    checkpoint.path.mkdir()
    for file in kept.iterdir():
        (checkpoint.path / file.name).symlink_to(file)
    with pinned(checkpoint, tmp_path / "pins") as held:
        shutil.rmtree(kept)
        assert unchanged(held)
        assert (held.path / "__0_0.distcp").stat().st_size > 0


def test_pins_left_by_a_killed_process_are_swept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    staging = tmp_path / "pins"
    sweep_pins(staging)
    left = pinned(checkpoint, staging)
    left.__enter__()
    sweep_pins(staging)
    assert list(staging.iterdir()) == []
    assert unchanged(checkpoint)
