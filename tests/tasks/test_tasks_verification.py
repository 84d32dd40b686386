"""What the comparison with Megatron leaves behind for the checkpoints that follow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoeval.convert import convert
from autoeval.tasks.conversion import _verified
from tests.convert.handmade import legacy_checkpoint

pytestmark = pytest.mark.slow


def test_a_checkpoint_that_vanished_leaves_the_verification_to_the_next(tmp_path: Path) -> None:
    out, note = tmp_path / "run", tmp_path / "run/verification.json"

    def plan(iteration: int) -> Any:
        here = out / f"iter_{iteration:07d}"
        return SimpleNamespace(
            checkpoint=SimpleNamespace(iteration=iteration),
            directory=here,
            converted=here / "hf",
            conversion=SimpleNamespace(verify="first"),
        )

    receipts = {}
    for iteration in (1, 2):
        source = legacy_checkpoint(tmp_path / f"iter_{iteration:07d}")
        receipts[iteration] = convert(source, plan(iteration).converted, tokenizer=None)
    shutil.rmtree(tmp_path / "iter_0000001")
    assert _verified(plan(1), receipts[1]).verified is None and not note.exists()
    verified = _verified(plan(2), receipts[2]).verified
    assert verified and verified["passed"]
    assert json.loads(note.read_text())["iteration"] == 2
