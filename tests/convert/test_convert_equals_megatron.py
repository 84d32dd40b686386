"""A converted model answers as Megatron's own model did, for every architecture, layout and parallelism."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_world import CASES, WORLDS
from transformers import AutoModelForCausalLM

from autoeval.convert import ConversionError, convert, read_receipt
from autoeval.convert.direct import load_direct
from autoeval.convert.verify import TOLERANCE, verify

pytestmark = pytest.mark.slow
World = Callable[[str], Path]
HOME = Path(__file__).resolve().parents[2]
STORED = {
    case: "bfloat16" for case, (_, args) in CASES.items() if args.get("bf16") and not args.get("apply_layernorm_1p")
}
MATRIX = [
    (world, case, layout) for world in WORLDS for case in WORLDS[world].cases for layout in ("torch_dist", "torch")
]


def load(output: Path, **overrides: Any) -> Any:
    """As a user loads it; every stored tensor must find its place, and every place its tensor."""
    options = {"dtype": torch.float32, **overrides}
    model, report = AutoModelForCausalLM.from_pretrained(str(output), output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def logits(model: Any, case: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The converted model's and Megatron's own."""
    reference = torch.load(case / "reference.pt", weights_only=True)
    assert reference["logits"].std() > 0.5, "the reference must be able to tell a wrong model"
    with torch.no_grad():
        return model(reference["tokens"]).logits, reference["logits"]


def difference(model: Any, case: Path) -> float:
    ours, megatrons = logits(model, case)
    return float((ours - megatrons).abs().max())


@pytest.mark.parametrize(("world", "case", "layout"), MATRIX)
def test_logits_equal_megatrons(megatron_world: World, tmp_path: Path, world: str, case: str, layout: str) -> None:
    place = megatron_world(world) / case
    receipt = convert(place / layout / "iter_0000010", tmp_path / "hf", tokenizer=None)
    assert receipt.architecture == CASES[case][0]
    assert receipt.dtype == STORED.get(case, "float32")
    ours, megatrons = logits(load(tmp_path / "hf"), place)
    assert torch.equal(ours.argmax(-1), megatrons.argmax(-1))
    assert float((ours - megatrons).abs().max()) <= TOLERANCE


def swap(model: Any, first: str, second: str) -> None:
    one, other = model.get_parameter(first), model.get_parameter(second)
    with torch.no_grad():
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def gate_and_up_swapped(model: Any) -> None:
    swap(model, "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")


def key_and_value_swapped(model: Any) -> None:
    swap(model, "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight")


def layers_swapped(model: Any) -> None:
    model.model.layers[1], model.model.layers[2] = model.model.layers[2], model.model.layers[1]


def experts_swapped(model: Any) -> None:
    weight = model.get_parameter("model.layers.1.mlp.experts.down_proj")
    with torch.no_grad():
        weight.copy_(weight.roll(1, 0))


def without_expert_bias(model: Any) -> None:
    model.model.layers[1].mlp.gate.e_score_correction_bias.zero_()


def rotated(base: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


@pytest.mark.parametrize(
    ("case", "spoil", "overrides"),
    [
        ("llama", gate_and_up_swapped, {}),
        ("llama", key_and_value_swapped, {}),
        ("llama", layers_swapped, {}),
        ("llama", None, {"rms_norm_eps": 1e-6}),
        ("llama", None, rotated(10000.0)),
        ("llama31", None, rotated(10000.0)),
        ("mistral", None, {"sliding_window": 15}),
        ("gpt2_fused_gelu", None, {"activation_function": "gelu"}),
        ("gpt2", None, {"activation_function": "gelu_new"}),
        ("mixtral", experts_swapped, {}),
        ("qwen2_moe", None, {"norm_topk_prob": True}),
        ("deepseek_v3", without_expert_bias, {}),
        ("deepseek_v3", None, {"routed_scaling_factor": 1.0}),
        ("deepseek_v2", None, {"topk_method": "greedy"}),
    ],
)
def test_the_comparison_can_tell_a_wrong_model(
    megatron_world: World, tmp_path: Path, case: str, spoil: Any, overrides: dict[str, Any]
) -> None:
    place = megatron_world("single") / case
    convert(place / "torch_dist/iter_0000010", tmp_path / "hf", tokenizer=None)
    assert difference(load(tmp_path / "hf"), place) <= TOLERANCE
    model = load(tmp_path / "hf", **overrides)
    if spoil:
        spoil(model)
    assert difference(model, place) > 3 * TOLERANCE


@pytest.mark.parametrize(
    ("place", "layout"),
    [
        ("single/llama_bf16", "torch_dist"), ("single/llama_geglu", "torch"), ("single/nemotron", "torch_dist"),
        ("single/mistral", "torch"), ("single/deepseek_v3_plain", "torch_dist"), ("pp2/llama_uneven", "torch_dist"),
        ("pp2_vpp2/llama31", "torch"), ("tp2/deepseek_v3", "torch"), ("tp2_ep2/mixtral_window_bf16", "torch_dist"),
    ],
)  # fmt: skip
def test_verify_builds_the_whole_model_again(megatron_world: World, tmp_path: Path, place: str, layout: str) -> None:
    world, case = place.split("/")
    source = megatron_world(world) / case / layout / "iter_0000010"
    convert(source, tmp_path / "hf", tokenizer=None)
    assert verify(source, tmp_path / "hf").passed


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "deepseek_v3_plain", "gpt_neox", "mistral"])
def test_loaded_directly_it_is_the_same_model(megatron_world: World, tmp_path: Path, case: str) -> None:
    place = megatron_world("single") / case
    convert(place / "torch/iter_0000010", tmp_path / "hf", tokenizer=None)
    written = load(tmp_path / "hf", dtype="auto").state_dict()
    direct = load_direct(place / "torch/iter_0000010", tokenizer=None).model
    assert direct.state_dict().keys() == written.keys()
    for name, tensor in direct.state_dict().items():
        assert tensor.dtype == written[name].dtype and torch.equal(tensor, written[name]), name
    if not CASES[case][1].get("bf16"):
        assert difference(direct, place) <= TOLERANCE


def test_a_conversion_is_reused_until_the_checkpoint_changes(megatron_world: World, tmp_path: Path) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single") / "gpt2/torch_dist/iter_0000010", source)
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
    shutil.copytree(megatron_world("single") / "gpt2/torch/iter_0000010", source)
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
    shutil.copytree(megatron_world("single") / "llama/torch_dist/iter_0000010", source)
    shard = source / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(ConversionError, match=r"__0_0\.distcp"):
        convert(source, tmp_path / "hf", tokenizer=None)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("moe_latent_size", 8),
        ("rotary_interleaved", True),
        ("multi_latent_attention", True),
        ("window_size", (4, 4)),
        ("position_embedding_type", "yarn"),
    ],
)
def test_an_argument_that_cannot_be_expressed_is_named(
    megatron_world: World, tmp_path: Path, name: str, value: object
) -> None:
    source = tmp_path / "iter_0000010"
    shutil.copytree(megatron_world("single") / "llama/torch_dist/iter_0000010", source)
    common = torch.load(source / "common.pt", weights_only=False)
    setattr(common["args"], name, value)
    torch.save(common, source / "common.pt")
    with pytest.raises(ConversionError, match=name):
        convert(source, tmp_path / "hf", tokenizer=None)


def test_old_query_key_value_orders_are_understood(megatron_world: World, tmp_path: Path) -> None:
    """checkpoint_version 0 keeps rows as [3, heads, size], 1 as [heads, size, 3]."""
    case = megatron_world("single") / "gpt2"
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
    """Converted and verified by a program of its own; what it says of wrong arguments is in ``test_convert_core.py``."""
    save = megatron_world("single") / "llama/torch_dist"
    command = [
        sys.executable,
        "-m",
        "autoeval.convert",
        str(save),
        str(tmp_path / "hf"),
        "--dtype",
        "bfloat16",
        "--verify",
    ]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "verified against Megatron" in done.stdout
    receipt = read_receipt(tmp_path / "hf")
    assert receipt and receipt.iteration == 10 and receipt.dtype == "bfloat16"
