"""What is pinned stays readable whatever the training run deletes, and a rewrite never goes unseen."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

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


def test_where_links_are_impossible_it_is_read_in_place(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.WARNING), pinned(checkpoint, tmp_path / "pins") as held:
        assert held == checkpoint
    assert "read in place" in caplog.text


def test_pins_left_by_a_killed_process_are_swept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    staging = tmp_path / "pins"
    sweep_pins(staging)
    left = pinned(checkpoint, staging)
    left.__enter__()
    sweep_pins(staging)
    assert list(staging.iterdir()) == []
    assert unchanged(checkpoint)
