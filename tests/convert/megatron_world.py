"""One process of a Megatron world: builds real ``GPTModel``s, saves them in both layouts, keeps Megatron's own logits.

``python megatron_world.py DIRECTORY WORLD RANK`` where WORLD names an entry of ``WORLDS``. For each case it writes
``DIRECTORY/WORLD/CASE/{torch_dist,torch}/iter_0000010`` and ``DIRECTORY/WORLD/CASE/{tokens,logits}.pt``.
"""

from __future__ import annotations

import sys
import zlib
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
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"num_layers": 4},
    "gpt2_untied_tanh": {"untie_embeddings_and_output_weights": True, "openai_gelu": True, "norm_epsilon": 1e-3},
    "llama": {**LLAMA, "untie_embeddings_and_output_weights": True, "rotary_base": 50000},
    "llama31": {**LLAMA, "use_rope_scaling": True, "rope_scaling_factor": 4.0, "norm_epsilon": 1e-6},
    "qwen2": {**LLAMA, "add_qkv_bias": True},
    "qwen3": {**LLAMA, "qk_layernorm": True, "kv_channels": 24},
}
# tensor parallel, pipeline parallel, virtual pipeline chunks, cases
WORLDS: dict[str, tuple[int, int, int | None, tuple[str, ...]]] = {
    "single": (1, 1, None, tuple(CASES)),
    "tp2_pp2": (2, 2, None, ("gpt2", "llama")),
    "pp2_vpp2": (1, 2, 2, ("llama31",)),
}


def main(directory: Path, world: str, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    from autoeval.convert import megatron_cpu

    tensor, pipeline, virtual, cases = WORLDS[world]
    megatron_cpu.initialize(
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        virtual_pipeline_parallel=virtual,
        rank=rank,
        world_size=tensor * pipeline,
        store=directory / f"{world}.store",
    )
    for case in cases:
        args = megatron_cpu.gpt_args(
            **CASES[case],
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=virtual,
        )
        chunks = [megatron_cpu.build_gpt(args, vp_stage=v if virtual else None).eval() for v in range(virtual or 1)]
        for number, chunk in enumerate(chunks):
            randomise(
                chunk, tied=not args.untie_embeddings_and_output_weights, place=rank // tensor * 10 + number, rank=rank
            )
        here = directory / world / case
        here.mkdir(parents=True, exist_ok=True)
        model = chunks if virtual else chunks[0]
        megatron_cpu.save_torch_dist(here / "torch_dist", 10, model, args)
        megatron_cpu.save_legacy(here / "torch", 10, model, args)
        tokens = torch.randint(0, args.padded_vocab_size, (2, 96), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = forward(chunks, tokens, tensor, pipeline, rank, args.hidden_size)
        if logits is not None and rank % tensor == 0:
            torch.save({"tokens": tokens, "logits": logits}, here / "reference.pt")
    torch.distributed.barrier()


def randomise(model: Any, *, tied: bool, place: int, rank: int) -> None:
    """Every weight, bias and norm of its own, so that no two can be exchanged unseen; copies on other ranks stay equal."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "word_embeddings" in name or (tied and name == "output_layer.weight"):
                parameter.mul_(8)  # shared between the first and last stage
                continue
            split = getattr(parameter, "tensor_model_parallel", False)
            seed = zlib.crc32(f"{name} {place} {rank if split else 0}".encode())
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.copy_(noise * 0.15 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def forward(chunks: list[Any], tokens: Any, tensor: int, pipeline: int, rank: int, hidden: int) -> Any:
    """Whole batch through all stages; logits on the last stage's ranks, None elsewhere."""
    import torch
    import torch.distributed

    from autoeval.convert import megatron_cpu

    stage, world = rank // tensor, tensor * pipeline
    state = None
    for number, chunk in enumerate(chunks):
        if pipeline > 1 and (stage > 0 or number > 0):
            received = torch.empty(tokens.shape[1], tokens.shape[0], hidden)
            torch.distributed.recv(received, (rank - tensor) % world)
            chunk.set_input_tensor(received)
        state = megatron_cpu.logits(chunk, tokens)
        last = stage == pipeline - 1 and number == len(chunks) - 1
        if pipeline > 1 and not last:
            torch.distributed.send(state.contiguous(), (rank + tensor) % world)
    return state if stage == pipeline - 1 else None


if __name__ == "__main__":  # megatron-core's writer processes import this file again
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
