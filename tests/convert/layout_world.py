"""Writes one model in every way that megatron-core 0.16.1 can, for tests of the readers.

``main(directory)`` writes ``directory/CASE/VARIANT/iter_0000010`` for the cases and variants below.
``shard(directory, rank)`` is for each of two processes that shard the case's tensors with PyTorch's DTensor and
save them with PyTorch's DCP under the keys of ``fsdp_dtensor``: Megatron-FSDP itself needs GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LLAMA = {
    "swiglu": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "group_query_attention": True,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "num_layers": 4,
    "untie_embeddings_and_output_weights": True,
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"num_layers": 4},
    "llama": LLAMA,
    "mixtral": {**LLAMA, "num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 96},
}
# what Megatron calls content_metadata
VARIANTS: dict[str, dict[str, bool]] = {
    "stacked": {},
    "per_layer": {"non_homogeneous_layers": True},
    "singleton": {"singleton_local_shards": True},
}


def main(directory: Path) -> None:
    import torch
    from megatron.core import dist_checkpointing

    from autoeval.convert import megatron_cpu

    megatron_cpu.initialize()
    for case, overrides in CASES.items():
        args = megatron_cpu.gpt_args(**overrides)
        model = megatron_cpu.build_gpt(args)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for variant, metadata in VARIANTS.items():
            path = directory / case / variant / "iter_0000010"
            path.mkdir(parents=True)
            common = {"args": args, "checkpoint_version": 3.0, "iteration": 10, "content_metadata": metadata}
            sharded = model.sharded_state_dict(metadata=metadata)
            dist_checkpointing.save({**common, "model": sharded}, str(path), content_metadata=metadata)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()
        if case == "llama":
            megatron_cpu.save_torch_dist(directory / case / "optimizer", 10, model, args, optimizer)
        megatron_cpu.save_legacy(directory / case / "legacy", 10, model, args, optimizer)


def shard(directory: Path, rank: int) -> None:
    import torch
    import torch.distributed
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for case in CASES:
        legacy = directory / case / "legacy/iter_0000010/mp_rank_00/model_optim_rng.pt"
        saved = torch.load(legacy, weights_only=False)
        state: dict[str, Any] = {}
        for name, tensor in saved["model"].items():
            if tensor is None:
                continue
            split = {name: tensor}
            if case != "gpt2" and ".linear_fc1." in name:
                gate, up = tensor.chunk(2)
                split = {f"{name}_w": gate, f"{name}_v": up}
            for key, part in split.items():
                state[f"module.{key}"] = distribute_tensor(part.contiguous()[: part.shape[0]], mesh, [Shard(0)])
        content = {"model": state, "args": saved["args"], "iteration": 10, "checkpoint_version": 3.0}
        dcp.save(content, checkpoint_id=directory / case / "fsdp_dtensor" / "iter_0000010")
    torch.distributed.barrier()
