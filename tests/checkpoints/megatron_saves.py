"""Saves of megatron-core itself, each function for a process of its own."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def save(root: Path, rank: int, world: int) -> None:
    """Both layouts: of one process with an optimizer, or of two pipeline stages, each with two virtual ones."""
    import torch

    from autoeval.convert import megatron_save

    model, arguments = _model(root, rank, world)
    optimizer = None
    if world == 1:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.step()
    megatron_save.save_torch_dist(root / "torch_dist", 2, model, arguments, optimizer)
    megatron_save.save_legacy(root / "torch", 2, model, arguments, optimizer)


def save_asynchronously(root: Path, steps: Connection) -> None:
    """Two saves at once: each step is told, and the next begins when it is asked for."""
    from megatron.core import dist_checkpointing

    from autoeval.convert import megatron_save

    def told(what: str) -> None:
        steps.send(what)
        steps.recv()

    model, arguments = _model(root, 0, 1)
    directory = root / "async"
    plain, requests = dist_checkpointing.save, []
    dist_checkpointing.save = lambda *a, **k: requests.append(plain(*a, async_sharded_save=True, **k))  # type: ignore[assignment]
    for iteration in (2, 4):
        megatron_save.save_torch_dist(directory, iteration, model, arguments)
    tracker = directory / "latest_checkpointed_iteration.txt"
    tracker.unlink()
    told("begun")
    for request in requests:
        given = list(request.async_fn_args)
        if request.preload_fn:
            given[1] = request.preload_fn()
        request.async_fn(*given, **request.async_fn_kwargs)
        told("written")
    for iteration, request in zip((2, 4), requests, strict=True):
        for finalize in request.finalize_fns:
            finalize()
        told("marked")
        tracker.write_text(str(iteration))
        told("finished")


def _model(root: Path, rank: int, world: int) -> tuple[Any, Any]:
    from autoeval.convert import megatron_cpu as cpu

    virtual = 2 if world == 2 else None
    cpu.initialize(
        pipeline_parallel=world, virtual_pipeline_parallel=virtual, rank=rank, world_size=world, store=root / "store"
    )
    arguments = cpu.gpt_args(
        swiglu=True, hidden_size=64, ffn_hidden_size=96, num_layers=2 * world,
        pipeline_model_parallel_size=world, virtual_pipeline_model_parallel_size=virtual,
    )  # fmt: skip
    if virtual is None:
        return cpu.build_gpt(arguments), arguments
    return [cpu.build_gpt(arguments, vp_stage=stage) for stage in range(2)], arguments
