"""The demo's training, with the real megatron-core: it saves what a watcher expects, and it learns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demos.quickstart import language
from demos.quickstart.train import learning_rate

ROOT = Path(__file__).parents[2]


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(iteration, 800) for iteration in range(1, 801)]
    peak = rates.index(max(rates))
    assert 10 < peak < 100
    assert rates[0] < rates[peak] / 10 and rates[-1] < rates[peak] / 10


@pytest.mark.slow
def test_twenty_iterations_save_megatron_checkpoints_and_lower_the_loss(tmp_path: Path) -> None:
    language.write_language(tmp_path / "language", count=1000)
    command = [
        sys.executable,
        str(ROOT / "demos" / "quickstart" / "train.py"),
        "--language",
        str(tmp_path / "language"),
    ]
    command += ["--save", str(tmp_path / "checkpoints"), "--log", str(tmp_path / "train.log")]
    command += ["--iterations", "20", "--save-interval", "10", "--log-interval", "10", "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    assert (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "20"
    for name in ("iter_0000010", "iter_0000020"):
        directory = tmp_path / "checkpoints" / name
        files = {file.name for file in directory.iterdir()}
        assert {".metadata", "metadata.json", "common.pt"} <= files and any(f.endswith(".distcp") for f in files)
        assert json.loads((directory / "metadata.json").read_text())["sharded_backend"] == "torch_dist"

    log = (tmp_path / "train.log").read_text()
    losses = [float(loss) for loss in re.findall(r"lm loss: (\S+) \|", log)]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.5, log
    assert re.search(r"iteration +20/ +20 \| consumed samples: +320 \|", log)
