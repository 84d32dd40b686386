"""A converted model answers as Megatron's own model did, for every architecture, layout and parallelism."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from autoeval.convert import ConversionError, convert, read_receipt

pytestmark = pytest.mark.slow
World = Callable[[str, int], Path]
HOME = Path(__file__).resolve().parents[2]


def difference(case: Path, layout: str, output: Path) -> float:
    convert(case / layout / "iter_0000010", output, tokenizer=None)
    model = AutoModelForCausalLM.from_pretrained(str(output)).eval()
    reference = torch.load(case / "reference.pt", weights_only=True)
    with torch.no_grad():
        logits = model(reference["tokens"]).logits
    assert reference["logits"].std() > 0.5, "the reference must be able to tell a wrong model"
    assert torch.equal(logits.argmax(-1), reference["logits"].argmax(-1))
    return float((logits - reference["logits"]).abs().max())


@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
@pytest.mark.parametrize("case", ["gpt2", "gpt2_untied_tanh", "llama", "llama31", "qwen2", "qwen3"])
def test_logits_equal_megatrons(megatron_world: World, tmp_path: Path, case: str, layout: str) -> None:
    assert difference(megatron_world("single", 1) / case, layout, tmp_path / "hf") <= 1e-4


@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
@pytest.mark.parametrize(
    ("world", "processes", "case"), [("tp2_pp2", 4, "gpt2"), ("tp2_pp2", 4, "llama"), ("pp2_vpp2", 2, "llama31")]
)
def test_parallel_ranks_are_merged(
    megatron_world: World, tmp_path: Path, world: str, processes: int, case: str, layout: str
) -> None:
    assert difference(megatron_world(world, processes) / case, layout, tmp_path / "hf") <= 1e-4


def test_a_conversion_is_reused_until_the_checkpoint_changes(megatron_world: World, tmp_path: Path) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single", 1) / "gpt2/torch_dist/iter_0000010", source)
    first = convert(source, tmp_path / "hf", tokenizer=None)
    assert convert(source, tmp_path / "hf", tokenizer=None) == first == read_receipt(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").write_bytes(b"cut short")
    assert read_receipt(tmp_path / "hf") is None
    again = convert(source, tmp_path / "hf", tokenizer=None)
    assert again.checksum == first.checksum and again.created_at > first.created_at
    (source / "metadata.json").touch()
    assert convert(source, tmp_path / "hf", tokenizer=None).fingerprint != first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "iter_0000010"]


def test_a_checkpoint_with_nan_is_quarantined(megatron_world: World, tmp_path: Path) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single", 1) / "gpt2/torch/iter_0000010", source)
    file = source / "mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.1.mlp.linear_fc2.weight"][3, 5] = float("nan")
    torch.save(state, file)
    with pytest.raises(ConversionError, match=r"h\.1\.mlp\.c_proj\.weight has NaN"):
        convert(source, tmp_path / "hf", tokenizer=None)
    assert not (tmp_path / "hf").exists() and (tmp_path / "hf.quarantined").is_dir()
    assert read_receipt(tmp_path / "hf.quarantined") is None


def test_a_shard_cut_short_is_refused(megatron_world: World, tmp_path: Path) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single", 1) / "llama/torch_dist/iter_0000010", source)
    shard = source / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(ConversionError, match=r"__0_0\.distcp"):
        convert(source, tmp_path / "hf", tokenizer=None)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_experts", 8), ("rotary_percent", 0.5), ("multi_latent_attention", True), ("add_bias_linear", True)],
)
def test_an_argument_that_cannot_be_expressed_is_named(
    megatron_world: World, tmp_path: Path, name: str, value: object
) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single", 1) / "llama/torch_dist/iter_0000010", source)
    common = torch.load(source / "common.pt", weights_only=False)
    setattr(common["args"], name, value)
    torch.save(common, source / "common.pt")
    with pytest.raises(ConversionError, match=name):
        convert(source, tmp_path / "hf", tokenizer=None)


def test_old_query_key_value_orders_are_understood(megatron_world: World, tmp_path: Path) -> None:
    """checkpoint_version 0 keeps rows as [3, heads, size], 1 as [heads, size, 3]."""
    case = megatron_world("single", 1) / "gpt2"
    plain = convert(case / "torch/iter_0000010", tmp_path / "hf", tokenizer=None).checksum
    for version in (0, 1.0):
        source = tmp_path / f"v{version}" / "iter_0000010"
        shutil.copytree(case / "torch/iter_0000010", source)
        file = source / "mp_rank_00/model_optim_rng.pt"
        state = torch.load(file, weights_only=False)
        state["checkpoint_version"] = version
        for name, tensor in state["model"].items():
            if "linear_qkv" in name and tensor is not None:
                rows = tensor.view(4, 3, 16, *tensor.shape[1:])
                rows = rows.transpose(0, 1) if version == 0 else rows.transpose(1, 2)
                state["model"][name] = rows.reshape(tensor.shape).clone()
        torch.save(state, file)
        assert convert(source, tmp_path / f"hf{version}", tokenizer=None).checksum == plain


def test_the_command_line(megatron_world: World, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autoeval.convert", *arguments],
            cwd=HOME,
            capture_output=True,
            text=True,
            timeout=120,
        )

    save = megatron_world("single", 1) / "llama/torch_dist"
    done = run(str(save), str(tmp_path / "hf"), "--dtype", "bfloat16", "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified against Megatron" in done.stdout
    receipt = read_receipt(tmp_path / "hf")
    assert receipt and receipt.iteration == 10 and receipt.dtype == "bfloat16"
    missing = run(str(save), str(tmp_path / "other"), "--iteration", "20")
    assert missing.returncode == 1 and "iter_0000020" in missing.stderr
    assert run(str(save)).returncode == 2
