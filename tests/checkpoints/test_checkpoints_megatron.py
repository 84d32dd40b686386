"""What megatron-core itself writes is understood: both layouts complete, every tensor where .metadata says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.checkpoints import Watcher, pinned, read_dcp_metadata, unchanged

HOME = Path(__file__).resolve().parents[2]
SAVE = """
import sys, torch
from autoeval.convert import megatron_cpu as cpu
if __name__ == "__main__":
    cpu.initialize()
    arguments = cpu.gpt_args(swiglu=True, hidden_size=64, ffn_hidden_size=96)
    model = cpu.build_gpt(arguments)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    cpu.save_torch_dist(sys.argv[1] + "/torch_dist", 2, model, arguments, optimizer)
    cpu.save_legacy(sys.argv[1] + "/torch", 2, model, arguments, optimizer)
"""


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("megatron.core")
    root = tmp_path_factory.mktemp("megatron")
    (root / "save.py").write_text(SAVE)
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "save.py"), str(root)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
def test_what_megatron_saved_is_complete(saves: Path, tmp_path: Path, layout: str) -> None:
    watcher = Watcher(
        saves / layout, "gpt", token_per_iteration=0.25, begin=2, end=2, interval=2, check_interval_seconds=60.0
    )
    found = watcher.scan()
    assert found.waiting == ()
    (checkpoint,) = found.complete
    assert (checkpoint.format, checkpoint.iteration, checkpoint.tokens) == (layout, 2, 0.5)
    with pinned(checkpoint, tmp_path) as held:
        assert unchanged(held)


@pytest.mark.slow
def test_every_stored_tensor_has_the_place_and_shape_that_the_metadata_says(saves: Path) -> None:
    import torch

    directory = saves / "torch_dist" / "iter_0000002"
    metadata = read_dcp_metadata(directory)
    assert metadata.tensors["decoder.layers.mlp.linear_fc1.weight"].shape == (2, 192, 64)
    assert metadata.tensors["embedding.word_embeddings.weight"].dtype == "float32"
    assert any(key.startswith("optimizer.") for key in metadata.tensors)
    covered: dict[str, int] = {}
    for item in metadata.items:
        if item.kind == "bytes":
            continue
        blob = (directory / item.file).read_bytes()[item.offset : item.offset + item.length]
        tensor = torch.load(io.BytesIO(blob), weights_only=True)
        assert item.sizes is not None and tensor.numel() == torch.Size(item.sizes).numel()
        covered[item.key] = covered.get(item.key, 0) + tensor.numel()
    assert covered == {key: torch.Size(value.shape).numel() for key, value in metadata.tensors.items()}
