from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import HOME, make_project
from tests.tiny_models import save_tiny_model, save_tiny_tokenizer

MEGATRON_SAVES = """
import sys, torch
from autoeval.convert import megatron_cpu as cpu
if __name__ == "__main__":
    cpu.initialize()
    for iteration in (100, 200, 300, 400):
        arguments = cpu.gpt_args(padded_vocab_size=384, hidden_size=32)
        torch.manual_seed(iteration)
        model = cpu.build_gpt(arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if iteration == 400:
                next(iter(model.parameters()))[3] = float("nan")
        cpu.save_torch_dist(sys.argv[1] + "/torch_dist", iteration, model, arguments)
        cpu.save_legacy(sys.argv[1] + "/torch", iteration, model, arguments)
    arguments = cpu.gpt_args(padded_vocab_size=384, hidden_size=48)
    cpu.save_torch_dist(sys.argv[1] + "/wide", 100, cpu.build_gpt(arguments), arguments)
"""
MEGATRON_CONFIG = """
auto_eval:
  project_name: tiny
  model_name: tiny-gpt2
  work_dir: out
  megatron: {checkpoint_path: checkpoints, tokenizer_type: huggingface, tokenizer_path: tokenizer}
  icl: {datasets: [./two.py], data_dir: .}
  wandb: {mode: disabled}
  order: oldest-first
  model: {verify: never}
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for iteration in (100, 200, 300, 400, 500):
        save_tiny_model(directory / f"checkpoint-{iteration}", seed=iteration)
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def megatron_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``{torch_dist,torch}/iter_0000{100,200,300,400}``, each with weights of its own; those of 400 have NaNs. And
    ``wide/iter_0000100``, a model of another shape."""
    pytest.importorskip("megatron.core", reason="megatron-core writes the checkpoints of these tests")
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    with (shared / "megatron.lock").open("a") as lock:  # one of pytest-xdist's processes makes them for all
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "megatron" / "made").exists():
            write_megatron_saves(shared / "megatron")
            (shared / "megatron" / "made").touch()
    return shared / "megatron"


def write_megatron_saves(directory: Path) -> None:
    """What ``megatron_saves`` is, into ``directory``."""
    directory.mkdir()
    script = directory / "save.py"
    script.write_text(MEGATRON_SAVES)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a clock that jumps
    environment |= {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), str(directory)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture
def megatron_project(project: Path) -> Path:
    """``project`` with a configuration for Megatron checkpoints. Nothing is in ``checkpoints`` yet."""
    (project / "evaluator.yaml").write_text(MEGATRON_CONFIG)
    save_tiny_tokenizer(project / "tokenizer")
    return project
