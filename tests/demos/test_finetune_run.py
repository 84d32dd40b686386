"""Fine-tuning as a user starts it: it trains, saves, goes on after a stop; the daemon and the diagnosis read what it left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
FINETUNE = HOME / "demos" / "finetune"
sys.path.insert(0, str(FINETUNE))

import finetune  # noqa: E402
import tiny_model  # noqa: E402

FLAGS = [
    *("--learning_rate", "5e-3", "--num_train_epochs", "40", "--save_steps", "50", "--logging_steps", "10"),
    *("--per_device_train_batch_size", "16", "--mode", "qwen1.5"),
]


@pytest.fixture(scope="module")
def mnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finetune") / "mnt"
    shutil.copytree(FINETUNE / "datasets", directory / "datasets")
    tiny_model.save(directory / "tiny")
    return directory


def environment(mnt: Path, **more: str) -> dict[str, str]:
    here = {"MNT": str(mnt), "MODEL": str(mnt / "tiny"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here, "CUDA_VISIBLE_DEVICES": "", **more}


def train(mnt: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FINETUNE / "chat_main.sh"), *FLAGS, *flags],
        env=environment(mnt, **more),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def where(mnt: Path, model: Path | None = None) -> list[str]:
    """The flags that chat_main.sh makes of its variables."""
    return [
        *("--model_name_or_path", str(model or mnt / "tiny"), "--data_path", str(mnt / "datasets")),
        *("--output_path", str(mnt / "output_path")),
    ]


def scores(mnt: Path, config: Path) -> dict[int, float]:
    """The daemon's F1 by checkpoint."""
    ended = subprocess.run(
        [
            *(sys.executable, str(HOME / "evaluator.py"), "--config", str(config), "--model-type", "huggingface"),
            *("--begin-iteration", "1", "--iteration-interval", "1", "--end-iteration", "1000", "--once"),
        ],
        env=environment(mnt),
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    with contextlib.closing(sqlite3.connect(mnt / "evaluation" / "ledger.sqlite")) as ledger:
        return dict(ledger.execute("SELECT iteration, value FROM scores WHERE task = 'answers' AND metric = 'f1'"))


@pytest.mark.slow
def test_all_weights_are_trained_and_every_checkpoint_is_scored(mnt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = train(mnt, "--train_type", "all", SCENARIO="faq")
    assert ended.returncode == 0, ended.stderr[-3000:]
    saved = sorted(int(path.name.removeprefix("checkpoint-")) for path in (mnt / "output_path").glob("checkpoint-*"))
    assert len(saved) >= 3
    found = scores(mnt, FINETUNE / "evaluator.yaml")
    assert sorted(found) == saved
    assert found[saved[-1]] > 0.25 and found[saved[-1]] >= found[saved[0]]  # it has learned to answer

    # Another run's checkpoints are not gone on from, and the same command goes on after the last.
    log = mnt / "output_path" / "log.txt"
    before, same = log.read_text(), [*FLAGS, *where(mnt), "--scenario", "faq", "--train_type", "all"]
    assert finetune.main([*same, "--learning_rate", "1e-3"]) == 2
    assert "has checkpoints of another run (--learning_rate was 0.005, now 0.001)" in capfd.readouterr().err
    assert log.read_text() == before
    shutil.rmtree(mnt / "output_path" / f"checkpoint-{saved[-1]}")
    assert finetune.main(same) == 0
    added = log.read_text().removeprefix(before)
    steps = [int(line.rpartition("'step': ")[2].rstrip("}\n")) for line in added.splitlines()]
    assert steps and min(steps) > saved[-2]
    assert (mnt / "output_path" / f"checkpoint-{saved[-1]}" / "model.safetensors").is_file()

    from autoeval.diagnosis.follow import follow
    from autoeval.diagnosis.report import diagnose

    told = diagnose(follow(log))["log"]
    assert (
        told["format"] == "hf-trainer-printed" and told["rows"] >= len(steps) and told["validations"]["validation"] >= 2
    )


@pytest.mark.slow
def test_lora_checkpoints_are_scored_too(mnt: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "mnt"
    here.mkdir()
    shutil.copytree(mnt / "datasets", here / "datasets")
    flags = [*FLAGS, *where(here, model=mnt / "tiny")]
    assert finetune.main([*flags, "--max_steps", "20", "--save_steps", "10"]) == 0
    newest = sorted((here / "output_path").glob("checkpoint-*"))[-1]
    assert (newest / "adapter_model.safetensors").is_file() and not (newest / "config.json").exists()
    assert Path(json.loads((newest / "adapter_config.json").read_text())["base_model_name_or_path"]).is_absolute()
    assert sorted(scores(here, FINETUNE / "evaluator.yaml")) == [10, 20]
    assert finetune.main([*flags, "--output_path", str(tmp_path / "x"), "--lora_module_name", "gate_proj,w1"]) == 2
    assert "--lora_module_name: the model has no 'w1' (it has:" in capfd.readouterr().err
    assert finetune.main([*flags, "--output_path", str(tmp_path / "x"), "--lr_scheduler_type", "sine"]) == 2
    assert not (tmp_path / "x").exists()
