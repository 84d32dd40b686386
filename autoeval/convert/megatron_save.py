"""Saves Megatron models as Megatron-LM's ``save_checkpoint`` does, in both layouts: for the tests and the demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def save_torch_dist(
    save_dir: Path | str,
    iteration: int,
    model: Any,
    args: argparse.Namespace,
    optimizer: Any = None,
    *,
    singleton_local_shards: bool = False,
) -> Path:
    """Save ``save_dir/iter_NNNNNNN`` by Megatron's ``dist_checkpointing``, in the order of Megatron-LM's
    ``save_checkpoint``: shards, ``.metadata``, ``metadata.json``, the tracker last. Returns the iteration's directory.

    ``model`` may be a list of virtual pipeline chunks. ``optimizer`` is a torch optimizer whose state is saved sharded
    like its parameters. ``singleton_local_shards`` stores layers and SwiGLU's halves under keys of their own. Every
    process of the world must call this.
    """
    import torch
    import torch.distributed
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    args.ckpt_format = "torch_dist"
    directory = _iteration_directory(save_dir, iteration)
    content_metadata = {"singleton_local_shards": singleton_local_shards}
    groups = {**content_metadata, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    state = _common_state(iteration, args)
    chunks = model if isinstance(model, list) else [model]
    for number, chunk in enumerate(chunks):
        key = "model" if len(chunks) == 1 else f"model{number}"
        state[key] = chunk.sharded_state_dict(metadata=groups)
    if optimizer is not None:
        state["optimizer"] = _sharded_optimizer(optimizer, state["model"])
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    state["rng_state"] = ShardedObject("rng_state", [{"torch_rng_state": torch.get_rng_state()}], (world,), (rank,))
    state["content_metadata"] = content_metadata
    torch.distributed.barrier()
    dist_checkpointing.save(state, str(directory), content_metadata=content_metadata)
    _move_tracker(save_dir, iteration)
    return directory


def save_legacy(
    save_dir: Path | str, iteration: int, model: Any, args: argparse.Namespace, optimizer: Any = None
) -> Path:
    """Save ``--ckpt-format torch``: one ``model_optim_rng.pt`` per model-parallel rank, then the tracker file."""
    import torch
    import torch.distributed
    from megatron.core import parallel_state

    args.ckpt_format = "torch"
    directory = _iteration_directory(save_dir, iteration)
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    state = _common_state(iteration, args)
    chunks = model if isinstance(model, list) else [model]
    for number, chunk in enumerate(chunks):
        key = "model" if len(chunks) == 1 else f"model{number}"
        state[key] = chunk.state_dict_for_save_checkpoint()
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    state["rng_state"] = [{"torch_rng_state": torch.get_rng_state()}]
    if parallel_state.get_expert_data_parallel_rank() == 0:
        (directory / name).mkdir(parents=True, exist_ok=True)
        torch.save(state, directory / name / "model_optim_rng.pt")
    torch.distributed.barrier()
    _move_tracker(save_dir, iteration)
    return directory


def _iteration_directory(save_dir: Path | str, iteration: int) -> Path:
    directory = Path(save_dir) / f"iter_{iteration:07d}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _common_state(iteration: int, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "num_floating_point_operations_so_far": 0,
    }


def _move_tracker(save_dir: Path | str, iteration: int) -> None:
    """Rank 0 writes the tracker when every rank is done, with a plain write, as Megatron-LM does."""
    import torch.distributed

    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        (Path(save_dir) / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    torch.distributed.barrier()


def _sharded_optimizer(optimizer: Any, model_state: dict[str, Any]) -> dict[str, Any]:
    from megatron.core.dist_checkpointing.optimizer import (
        get_param_id_to_sharded_param_map,
        optim_state_to_sharding_state,
    )

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_id = get_param_id_to_sharded_param_map(model_state, parameters)
    state: dict[str, Any] = optimizer.state_dict()
    optim_state_to_sharding_state(state, by_id, exclude_keys=("step",))
    return state
