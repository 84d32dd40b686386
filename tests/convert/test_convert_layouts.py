"""The same model, however it was saved, is read as the same tensors and converted to the same bytes."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import layout_world
import legacy_variants
import pytest
import torch
import torch.distributed.checkpoint as dcp

from autoeval.checkpoints.layout import list_files
from autoeval.checkpoints.readiness import inspect
from autoeval.convert import ConversionError, convert
from autoeval.convert.source import Source, open_source
from tests import forked

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ITERATION = "iter_0000010"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of what ``layout_world.py`` writes: CASE/VARIANT/iter_0000010."""
    pytest.importorskip("megatron.core", reason="megatron-core writes the checkpoints of these tests")
    directory = tmp_path_factory.mktemp("layouts")
    said = [directory / f"{name}.txt" for name in ("all", "0", "1")]
    forked.finish([forked.start(layout_world.main, directory, output=said[0])], said[:1])
    ranks = [forked.start(layout_world.shard, directory, rank, output=said[1 + rank]) for rank in range(2)]
    forked.finish(ranks, said[1:])
    return directory


def assert_same(found: Source, expected: Source) -> None:
    assert found.names() == expected.names()
    for name in sorted(expected.names()):
        assert torch.equal(found.tensor(name), expected.tensor(name)), name


def plain(world: Path, case: str) -> Source:
    return open_source(world / case / "legacy" / ITERATION)


@pytest.fixture(scope="module")
def checksum(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checksum of a checkpoint's conversion; each is made once."""
    made: dict[tuple[Path, str], str] = {}

    def of(source: Path, dtype: str = "auto") -> str:
        if (source, dtype) not in made:
            made[source, dtype] = convert(
                source, tmp_path_factory.mktemp("hf") / "hf", tokenizer=None, dtype=dtype
            ).checksum
        return made[source, dtype]

    return of


@pytest.mark.parametrize(
    ("case", "variant", "key"),
    [
        ("gpt2", "stacked", "decoder.layers.mlp.linear_fc1.bias"),
        ("gpt2", "per_layer", "decoder.layers.3.mlp.linear_fc1.bias"),
        ("gpt2", "singleton", "decoder.layers.3.mlp.linear_fc1.bias"),
        ("gpt2", "fsdp_dtensor", "model.module.decoder.layers.3.mlp.linear_fc1.bias"),
        ("llama", "stacked", "decoder.layers.self_attention.linear_qkv.layer_norm_weight"),
        ("llama", "per_layer", "decoder.layers.3.mlp.linear_fc1.layer_norm_weight"),
        ("llama", "singleton", "decoder.layers.3.mlp.linear_fc1.weight_w"),
        ("llama", "optimizer", "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight"),
        ("llama", "fsdp_dtensor", "model.module.decoder.layers.3.mlp.linear_fc1.weight_v"),
        ("mixtral", "stacked", "decoder.layers.mlp.experts.experts.linear_fc1.weight"),
        ("mixtral", "per_layer", "decoder.layers.3.mlp.experts.experts.linear_fc1.weight"),
        ("mixtral", "singleton", "decoder.layers.3.mlp.experts.experts.3.linear_fc1.weight_w"),
        ("mixtral", "fsdp_dtensor", "model.module.decoder.layers.3.mlp.experts.local_experts.3.linear_fc1.weight_w"),
    ],
)
def test_all_key_styles_mean_the_same(world: Path, checksum: Any, case: str, variant: str, key: str) -> None:
    source = world / case / variant / ITERATION
    assert key in dcp.FileSystemReader(source).read_metadata().state_dict_metadata, "not the style that is tested"
    assert_same(open_source(source), plain(world, case))
    assert checksum(source) == checksum(world / case / "legacy" / ITERATION)


@pytest.mark.parametrize("case", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "stages", [((1, 3),), ((3, 1),), ((1, 1), (2, 0)), ((0, 1), (1, 2))], ids=["1+3", "3+1", "1,1+2,0", "0,1+1,2"]
)
def test_uneven_pipeline_splits(world: Path, tmp_path: Path, case: str, stages: Any) -> None:
    """By decoder_first_pipeline_num_layers, account_for_embedding_in_pipeline_split, pipeline_model_parallel_layout."""
    source = legacy_variants.write(tmp_path / ITERATION, legacy_variants.load(world / case), tensor=2, stages=stages)
    assert_same(open_source(source), plain(world, case))


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        ({"expert": 2}, "mp_rank_00_001"),
        ({"stages": ((2, 2),)}, "mp_rank_00_001"),
        ({"expert": 2, "stages": ((2, 2),)}, "mp_rank_00_001_001"),
        ({"expert": 4, "stages": ((1, 1), (1, 1))}, "mp_rank_00_001_003"),
        ({"expert": 2, "tensor": 2}, "mp_rank_01_001"),
        ({"expert": 2, "tensor": 2, "expert_tensor": 2}, "mp_rank_01_001"),
        ({"expert": 4, "tensor": 2, "expert_tensor": 1}, "mp_rank_01_003"),
        ({"tensor": 2}, "mp_rank_01"),
    ],
)
def test_expert_parallel_ranks(world: Path, tmp_path: Path, options: dict[str, Any], directory: str) -> None:
    """Two numbers after the tensor rank's may mean pipeline or expert: the arguments decide."""
    source = legacy_variants.write(tmp_path / ITERATION, legacy_variants.load(world / "mixtral"), **options)
    assert (source / directory).is_dir()
    assert inspect(source, list_files(source)).problem == "", "the watcher expects other ranks"
    assert_same(open_source(source), plain(world, "mixtral"))


@pytest.mark.parametrize("options", [{}, {"expert": 2}, {"tensor": 2}], ids=["1", "EP 2", "TP 2"])
@pytest.mark.parametrize("change", [legacy_variants.numbered_experts, legacy_variants.grouped_experts])
def test_experts_of_other_modules(world: Path, tmp_path: Path, change: Any, options: dict[str, Any]) -> None:
    saved = legacy_variants.load(world / "mixtral")
    source = legacy_variants.write(tmp_path / ITERATION, saved, change=change, **options)
    assert_same(open_source(source), plain(world, "mixtral"))


def test_expert_ranks_must_agree_on_the_rest(world: Path, tmp_path: Path) -> None:
    source = legacy_variants.write(tmp_path / ITERATION, legacy_variants.load(world / "mixtral"), expert=2)
    file = source / "mp_rank_00_001" / legacy_variants.FILE
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.2.self_attention.linear_qkv.weight"][0, 0] += 1
    torch.save(state, file)
    with pytest.raises(ConversionError, match=r"layers\.2\.self_attention\.linear_qkv\.weight should be the same"):
        open_source(source)
    shutil.rmtree(source / "mp_rank_00_001")
    with pytest.raises(ConversionError, match=r"mp_rank_00_001.*not there"):
        open_source(source)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("expert_tensor_parallel_size", 3, "expert_tensor_parallel_size=3"),
        ("expert_model_parallel_size", 3, "num_experts=4 cannot be divided"),
        ("expert_model_parallel_size", "2", "expert_model_parallel_size"),
        ("tensor_model_parallel_size", 10**9, "parallel"),
    ],
)
def test_ranks_that_cannot_be_are_refused(world: Path, tmp_path: Path, name: str, value: Any, expected: str) -> None:
    source = legacy_variants.write(tmp_path / ITERATION, legacy_variants.load(world / "mixtral"))
    file = source / "mp_rank_00" / legacy_variants.FILE
    state = torch.load(file, weights_only=False)
    setattr(state["args"], name, value)
    torch.save(state, file)
    with pytest.raises(ConversionError, match=expected):
        open_source(source)


@pytest.mark.parametrize(("case", "tensor"), [("gpt2", 1), ("gpt2", 2), ("llama", 2)])
def test_models_from_before_megatron_core(world: Path, tmp_path: Path, checksum: Any, case: str, tensor: int) -> None:
    saved = legacy_variants.load(world / case)
    source = legacy_variants.write(
        tmp_path / "release", saved, tensor=tensor, stages=((2, 2),), change=legacy_variants.before_core
    )
    for file in source.rglob("*.pt"):  # arguments of that time
        state = torch.load(file, weights_only=False)
        state["args"].model_parallel_size = tensor
        del state["args"].tensor_model_parallel_size
        torch.save(state, file)
    assert_same(open_source(source), plain(world, case))
    assert checksum(source) == checksum(world / case / "legacy" / ITERATION)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("version", [None, 0, 1.0, 2.0])
def test_the_order_of_queries_keys_and_values(world: Path, tmp_path: Path, version: float | None, tensor: int) -> None:
    """Rows of a rank's linear_qkv are [3, heads, size] without a checkpoint_version, [heads, size, 3] in 1, then
    [heads, 3, size]."""
    heads, size = 4 // tensor, 16

    def reorder(model: legacy_variants.Model) -> legacy_variants.Model:
        for name, value in model.items():
            if "linear_qkv." in name and (version or 0) < 2:
                rows = value.view(heads, 3, size, *value.shape[1:])
                rows = rows.transpose(1, 2) if version == 1.0 else rows.transpose(0, 1)
                model[name] = rows.reshape(value.shape).clone()
        return model

    saved = legacy_variants.load(world / "gpt2")
    source = legacy_variants.write(tmp_path / ITERATION, saved, tensor=tensor, change=reorder)
    for file in source.rglob("*.pt"):
        state = torch.load(file, weights_only=False)
        state["checkpoint_version"] = version
        torch.save({key: value for key, value in state.items() if value is not None}, file)
    assert_same(open_source(source), plain(world, "gpt2"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_stored_in_half_precision(world: Path, tmp_path: Path, checksum: Any, dtype: str) -> None:
    saved = legacy_variants.load(world / "llama")
    half = {name: value.to(getattr(torch, dtype)) for name, value in saved["model"].items() if value is not None}
    legacy = legacy_variants.write(tmp_path / "a" / ITERATION, {**saved, "model": half}, tensor=2)
    sharded = stored_by_dcp(world, tmp_path / "b" / ITERATION, dtype=getattr(torch, dtype))
    expected = checksum(world / "llama/legacy" / ITERATION, dtype)
    assert checksum(legacy) == expected and checksum(sharded) == expected


def stored_by_dcp(world: Path, path: Path, *, dtype: torch.dtype = torch.float32, args: bool = True) -> Path:
    """The llama as megatron-core 0.19 stores it: no common.pt, its content is the item common_state/shard_0_1."""
    source = world / "llama/stacked" / ITERATION
    shutil.copytree(source, path)
    metadata = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
    state: dict[str, Any] = {k: torch.empty(v.size) for k, v in metadata.items() if hasattr(v, "size")}
    dcp.load(state, checkpoint_id=source, no_dist=True)
    common = torch.load(source / "common.pt", weights_only=False)
    if not args:
        del common["args"]
    state = {key: value.to(dtype) for key, value in state.items()}
    state["common_state/shard_0_1"] = [common]
    for file in (*path.glob("*.distcp"), path / "common.pt", path / ".metadata"):
        file.unlink()
    dcp.save(state, checkpoint_id=path, planner=dcp.DefaultSavePlanner(flatten_state_dict=False), no_dist=True)
    return path


def test_arguments_in_a_stored_item(world: Path, tmp_path: Path) -> None:
    source = stored_by_dcp(world, tmp_path / ITERATION)
    assert not (source / "common.pt").exists()
    assert_same(open_source(source), plain(world, "llama"))
    assert vars(open_source(source).args) == vars(open_source(world / "llama/stacked" / ITERATION).args)


RUN_CONFIG = Path(__file__).with_name("megatron_bridge_0_3_1_run_config.yaml").read_text()


def test_megatron_bridge_has_its_arguments_in_run_config(world: Path, tmp_path: Path, checksum: Any) -> None:
    source = stored_by_dcp(world, tmp_path / ITERATION, args=False)
    with pytest.raises(ConversionError, match=r"neither the training arguments.*run_config\.yaml.*on its way"):
        open_source(source)
    (source / "run_config.yaml").write_text(RUN_CONFIG)
    expected = convert(world / "llama/stacked" / ITERATION, tmp_path / "expected", tokenizer=None)
    assert convert(source, tmp_path / "found", tokenizer=None).checksum == expected.checksum
    assert (tmp_path / "found/config.json").read_text() == (tmp_path / "expected/config.json").read_text()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("llama_provider.LlamaModelProvider", "gemma_provider.GemmaModelProvider", "GemmaModelProvider"),
        ("llama_provider.LlamaModelProvider", "llama_provider.Llama4ModelProvider", "Llama4ModelProvider"),
        ("llama_provider.LlamaModelProvider", "gpt_oss_provider.GPTOSSProvider20B", "GPTOSSProvider20B"),
        ("torch.nn.functional.silu", "torch.nn.functional.relu", "activation_func"),
        ("hidden_size: 64", "hidden_size: !!python/object/apply:os.getcwd []", "not plain YAML.*os.getcwd"),
        ("model:", "models:", "no section 'model'"),
        ("hidden_size: 64", "hidden_size: 64\n  old_context_len: 4096", "low_freq_factor=None.*old_context_len=4096"),
        ("qk_layernorm: false", "qk_layernorm: [", "not plain YAML"),
    ],
)
def test_a_run_config_that_means_more_is_refused(
    world: Path, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    source = stored_by_dcp(world, tmp_path / ITERATION, args=False)
    assert old in RUN_CONFIG
    (source / "run_config.yaml").write_text(RUN_CONFIG.replace(old, new))
    with pytest.raises(ConversionError, match=expected):
        open_source(source)


def test_megatron_bridges_former_way_to_scale_rope_is_not_lost(world: Path, tmp_path: Path) -> None:
    """Before 0.3 its Llama31ModelProvider scaled the frequencies itself, by fields that megatron-core does not know."""
    source = stored_by_dcp(world, tmp_path / ITERATION, args=False)
    fields = "scale_factor: 32.0\n  low_freq_factor: 1.0\n  high_freq_factor: 4.0\n  old_context_len: 8192"
    config = RUN_CONFIG.replace("LlamaModelProvider", "Llama31ModelProvider8B")
    (source / "run_config.yaml").write_text(config.replace("hidden_size: 64", f"hidden_size: 64\n  {fields}"))
    convert(source, tmp_path / "found", tokenizer=None)
    rope = json.loads((tmp_path / "found/config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "llama3" and rope["factor"] == 32.0 and rope["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("variant", ["legacy", "optimizer", "stacked", "all layers in one item"])
def test_only_the_models_bytes_are_read_and_once(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str
) -> None:
    """Of a fused tensor the queries, keys and values are asked for one after another."""
    expected = sum(plain(world, "llama").tensor(name).nbytes for name in plain(world, "llama").names())
    read = 0
    original = os.preadv

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        nonlocal read
        count = original(descriptor, buffers, offset)
        read += count
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    path = world / "llama" / variant / ITERATION
    source = open_source(path if path.exists() else stored_by_dcp(world, tmp_path / ITERATION))
    for name in sorted(source.names()):
        for _part in range(3):
            source.tensor(name)
    assert read == expected


def test_zarr_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(ConversionError, match=r"zarr checkpoint.*--ckpt-format torch_dist"):
        open_source(tmp_path)


def test_a_save_that_has_not_finished_is_not_taken_for_another_layout(world: Path, tmp_path: Path) -> None:
    source = tmp_path / ITERATION
    shutil.copytree(world / "llama/stacked" / ITERATION, source)
    (source / "metadata.json").unlink()
    with pytest.raises(ConversionError, match="a torch_dist save that has not finished"):
        open_source(source)


def test_transformer_engines_names_in_legacy_files(world: Path, tmp_path: Path) -> None:
    names = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }

    def engine(model: legacy_variants.Model) -> Any:
        named: dict[str, Any] = {}
        for name, value in model.items():
            for local, fused in names.items():
                name = name.replace(local, fused)
            named[f"module.{name}"] = value
        return {**named, "module.decoder.layers.0.mlp.linear_fc1._extra_state": torch.zeros(3, dtype=torch.uint8)}

    saved = copy.copy(legacy_variants.load(world / "gpt2"))
    source = legacy_variants.write(tmp_path / ITERATION, saved, tensor=2, change=engine)
    assert_same(open_source(source), plain(world, "gpt2"))
