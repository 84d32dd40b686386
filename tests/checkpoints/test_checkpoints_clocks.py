"""A machine that writes checkpoints has a clock of its own, and ours may be set while we watch."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_files import make, put, watcher

from autoeval.checkpoints import SettleTimes, watch


@pytest.mark.parametrize("ahead", [3.0, 3600.0, 86400.0])
@pytest.mark.parametrize("layout", ["huggingface_shards", "torch_dist"])
def test_files_of_a_clock_that_is_ahead_are_young_only_until_they_have_rested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, ahead: float
) -> None:
    save = make(layout, tmp_path / "made", 1)
    root = tmp_path / "root"
    put(save, root, 4, age=-ahead)
    if save.model_type == "megatron":
        (root / "latest_checkpointed_iteration.txt").unlink()  # nothing proves that the save has ended but its rest
    now = [1000.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(time=time.time, monotonic=lambda: now[0]))
    one = watcher(root, model_type=save.model_type, settle=SettleTimes(quiet=5.0, marks=5.0))
    assert not one.scan().complete
    now[0] += 4.9
    assert not one.scan().complete
    (next(root.iterdir()) / "late.txt").touch()  # it changes again: the rest begins anew
    now[0] += 4.9
    assert not one.scan().complete
    now[0] += 5.1
    assert [found.iteration for found in one.scan().complete] == [4]
