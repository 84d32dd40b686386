"""One process of a Megatron world: builds real ``GPTModel``s, saves them in both layouts, keeps Megatron's own logits.

``main(directory, name, rank)`` where ``name`` is an entry of ``WORLDS``. For each case it writes
``directory/NAME/CASE/{torch_dist,torch}/iter_0000010`` and ``directory/NAME/CASE/reference.pt``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLETONS = "singleton_local_shards"  # of the save, not an argument
ROPE = {  # none of these numbers is a default of transformers
    "position_embedding_type": "rope", "group_query_attention": True, "num_query_groups": 2, "rotary_base": 50000,
    "norm_epsilon": 1e-3,
}  # fmt: skip
LLAMA = {**ROPE, "swiglu": True, "normalization": "RMSNorm", "add_bias_linear": False, "ffn_hidden_size": 96}
UNTIED = {"untie_embeddings_and_output_weights": True}
BF16 = {"bf16": True}
EXPERTS = {**LLAMA, "num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "moe_layer_freq": 1}
LATENT = {
    **EXPERTS, "group_query_attention": False, "multi_latent_attention": True, "qk_layernorm": True, "norm_epsilon": 1e-6,
    "q_lora_rank": None, "kv_lora_rank": 24, "qk_head_dim": 16, "qk_pos_emb_head_dim": 8, "v_head_dim": 12,
    "moe_shared_expert_intermediate_size": 96, "moe_layer_freq": [0, 1],
}  # fmt: skip

# Case -> the architecture it becomes, the arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"num_layers": 4}),
    "gpt2_fused_gelu": ("gpt2", {**UNTIED, "bias_gelu_fusion": True, "norm_epsilon": 1e-3}),
    "gpt2_no_bias": ("gpt2", {"add_bias_linear": False, "squared_relu": True, "bias_gelu_fusion": True}),
    "gpt2_qkv_bias": ("gpt2", {"add_bias_linear": False, "add_qkv_bias": True, "apply_layernorm_1p": True}),
    "gpt2_bf16": ("gpt2", {**BF16, "openai_gelu": True}),  # which megatron-core ignores
    "llama": ("llama", {**LLAMA, **UNTIED, "num_layers": 4}),
    "llama31": ("llama", {**LLAMA, "use_rope_scaling": True, "rope_scaling_factor": 4.0, "norm_epsilon": 1e-6, "num_layers": 4}),
    "llama_bias": ("llama", {**LLAMA, "add_bias_linear": True}),
    "llama_bf16": ("llama", {**LLAMA, **BF16, **UNTIED, SINGLETONS: True}),
    "llama_quick_geglu": ("llama", {**LLAMA, "swiglu": False, "quick_geglu": True}),
    # Gemma without what Megatron cannot do: the scaled embeddings.
    "llama_geglu": ("llama", {**LLAMA, **BF16, "swiglu": False, "geglu": True, "bias_gelu_fusion": True, "apply_layernorm_1p": True}),
    "mistral": ("mistral", {**LLAMA, "window_size": (15, 0)}),
    "qwen2": ("qwen2", {**LLAMA, "add_qkv_bias": True, "kv_channels": 24}),
    "qwen3": ("qwen3", {**LLAMA, "qk_layernorm": True, "kv_channels": 24}),
    "phi3": ("phi3", {**LLAMA, **UNTIED, "rotary_percent": 0.5, "kv_channels": 24}),
    "stablelm": ("stablelm", {**LLAMA, "normalization": "LayerNorm", "rotary_percent": 0.5, "add_qkv_bias": True}),
    "gpt_neox": ("gpt_neox", {**ROPE, **UNTIED, "group_query_attention": False, "rotary_percent": 0.5, "bias_gelu_fusion": True}),
    "nemotron": (
        "nemotron",
        {**ROPE, **UNTIED, "apply_layernorm_1p": True, "squared_relu": True, "rotary_percent": 0.25, "add_bias_linear": False, "kv_channels": 24},
    ),
    "starcoder2": ("starcoder2", {**ROPE, "kv_channels": 24, "window_size": [15, 0]}),
    "mixtral": ("mixtral", {**EXPERTS, **UNTIED}),
    "mixtral_window_bf16": ("mixtral", {**EXPERTS, **BF16, "window_size": (15, 0), "moe_router_topk": 3, SINGLETONS: True}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "qk_layernorm": True, "kv_channels": 24, "moe_layer_freq": [0, 1]}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, **UNTIED, "add_qkv_bias": True, "moe_router_pre_softmax": True,
         "moe_shared_expert_intermediate_size": 80, "moe_shared_expert_gate": True, "moe_layer_freq": 2},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**LATENT, **UNTIED, "q_lora_rank": 20, "num_experts": 8, "moe_router_topk": 4, "moe_router_num_groups": 4,
         "moe_router_group_topk": 2, "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
         "moe_router_topk_scaling_factor": 2.5, "rotary_scaling_factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0,
         "original_max_position_embeddings": 32},
    ),
    "deepseek_v3_plain": (
        "deepseek_v3",
        {**LATENT, **BF16, "moe_router_score_function": "sigmoid", "moe_router_topk": 1, "rope_type": "rope",
         "moe_router_enable_expert_bias": True,
         "mtp_num_layers": 1, "moe_layer_freq": 1},
    ),
    "glm4_moe": (
        "glm4_moe",
        {**EXPERTS, **UNTIED, "add_qkv_bias": True, "qk_layernorm": True, "rotary_percent": 0.5, "kv_channels": 24,
         "num_experts": 8, "moe_router_topk": 4, "moe_router_num_groups": 4, "moe_router_group_topk": 2,
         "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
         "moe_router_topk_scaling_factor": 2.5, "moe_shared_expert_intermediate_size": 48, "moe_layer_freq": [0, 1]},
    ),
    "deepseek_v3_unbiased": ("deepseek_v3", {**LATENT, "moe_router_score_function": "sigmoid", "moe_shared_expert_intermediate_size": 48}),
    "deepseek_v2": (
        "deepseek_v2",
        {**LATENT, "q_lora_rank": 20, "num_experts": 8, "moe_router_topk": 3, "moe_router_num_groups": 4,
         "moe_router_group_topk": 2, "moe_router_pre_softmax": True, "moe_router_topk_scaling_factor": 1.5,
         "rotary_scaling_factor": 4.0, "mscale_all_dim": 0.0, "mscale": 0.7, "original_max_position_embeddings": 32},
    ),
    "llama_uneven": ("llama", {**LLAMA, "num_layers": 4, "decoder_first_pipeline_num_layers": 1}),
    "mixtral_deep": ("mixtral", {**EXPERTS, "num_layers": 4}),
    "qwen3_moe_deep": ("qwen3_moe", {**EXPERTS, "qk_layernorm": True, "num_layers": 4, "moe_layer_freq": [0, 1, 1, 0]}),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    cases: tuple[str, ...]
    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None
    expert: int = 1
    expert_tensor: int | None = None

    @property
    def processes(self) -> int:
        return max(self.tensor, (self.expert_tensor or self.tensor) * self.expert) * self.pipeline


WORLDS: dict[str, World] = {
    "single": World(tuple(case for case in CASES if not case.endswith(("_deep", "_uneven")))),
    "tp2": World(("gpt2", "qwen3", "nemotron", "deepseek_v3", "mixtral"), tensor=2),
    "pp2": World(("gpt2", "llama", "llama_uneven", "deepseek_v2"), pipeline=2),
    "tp2_pp2": World(("gpt2", "llama", "starcoder2", "llama_uneven"), tensor=2, pipeline=2),
    "pp2_vpp2": World(("llama31",), pipeline=2, virtual=2),
    "ep2": World(("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3"), expert=2),
    "tp2_ep2_etp1": World(("mixtral",), tensor=2, expert=2, expert_tensor=1),
    "pp2_ep2": World(("mixtral_deep", "qwen3_moe_deep"), pipeline=2, expert=2),
    "tp2_ep2": World(("mixtral", "mixtral_window_bf16", "deepseek_v3"), tensor=2, expert=2),
}


def main(directory: Path, name: str, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    from autoeval.convert import megatron_cpu

    world = WORLDS[name]
    megatron_cpu.initialize(
        tensor_parallel=world.tensor,
        pipeline_parallel=world.pipeline,
        virtual_pipeline_parallel=world.virtual,
        expert_parallel=world.expert,
        expert_tensor_parallel=world.expert_tensor,
        rank=rank,
        world_size=world.processes,
        store=directory / f"{name}.store",
    )
    for case in world.cases:
        arguments = dict(CASES[case][1])
        singletons = arguments.pop(SINGLETONS, False)
        args = megatron_cpu.gpt_args(
            **arguments,
            tensor_model_parallel_size=world.tensor,
            pipeline_model_parallel_size=world.pipeline,
            virtual_pipeline_model_parallel_size=world.virtual,
            expert_model_parallel_size=world.expert,
            expert_tensor_parallel_size=world.expert_tensor or world.tensor,
        )
        chunks = [
            megatron_cpu.build_gpt(args, vp_stage=v if world.virtual else None).eval()
            for v in range(world.virtual or 1)
        ]
        for number, chunk in enumerate(chunks):
            randomise(chunk, args, number)
        tokens = torch.randint(0, args.padded_vocab_size, (2, 96), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = forward(chunks, tokens, world, rank, args.hidden_size)
        if args.bf16:
            chunks, args.params_dtype = [chunk.bfloat16() for chunk in chunks], torch.bfloat16
        here = directory / name / case
        here.mkdir(parents=True, exist_ok=True)
        model = chunks if world.virtual else chunks[0]
        megatron_cpu.save_torch_dist(here / "torch_dist", 10, model, args, singleton_local_shards=singletons)
        megatron_cpu.save_legacy(here / "torch", 10, model, args)
        if logits is not None and rank == world.processes - 1:
            torch.save({"tokens": tokens, "logits": logits}, here / "reference.pt")
    torch.distributed.barrier()


def randomise(model: Any, args: Any, chunk: int) -> None:
    """Every weight, bias and norm of its own, so that no two can be exchanged unseen; copies on other ranks are equal."""
    import torch
    from megatron.core import parallel_state

    stage = parallel_state.get_pipeline_model_parallel_rank()
    tensor = parallel_state.get_tensor_model_parallel_rank()
    expert = parallel_state.get_expert_model_parallel_rank(), parallel_state.get_expert_tensor_parallel_rank()
    tied = not args.untie_embeddings_and_output_weights
    biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("expert_bias")]
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *biases]:
            split = getattr(parameter, "tensor_model_parallel", False)
            rank: Any = expert if ".local_experts." in name else tensor if split else 0
            # The embeddings are the same wherever they stand: first and last stage, multi-token prediction.
            shared = "word_embeddings" in name or (tied and name == "output_layer.weight")
            seed = f"embeddings {rank}" if shared else f"{name} {stage} {chunk} {rank}"
            generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if "norm" in name and name.endswith("weight") and not args.apply_layernorm_1p else 0.0
            parameter.copy_(noise * 0.15 + centre)
            if args.bf16 and not name.endswith("expert_bias"):
                parameter.copy_(parameter.bfloat16())


def forward(chunks: list[Any], tokens: Any, world: World, rank: int, hidden: int) -> Any:
    """Whole batch through all stages; logits on the last stage's ranks, None elsewhere."""
    import torch
    import torch.distributed

    from autoeval.convert import megatron_cpu

    width = world.processes // world.pipeline  # ranks of one stage, which follow each other
    stage = rank // width
    state = None
    for number, chunk in enumerate(chunks):
        if world.pipeline > 1 and (stage > 0 or number > 0):
            received = torch.empty(tokens.shape[1], tokens.shape[0], hidden)
            torch.distributed.recv(received, (rank - width) % world.processes)
            chunk.set_input_tensor(received)
        state = megatron_cpu.logits(chunk, tokens)
        last = stage == world.pipeline - 1 and number == len(chunks) - 1
        if world.pipeline > 1 and not last:
            torch.distributed.send(state.contiguous(), (rank + width) % world.processes)
    return state if stage == world.pipeline - 1 else None
