"""Megatron's own model without a GPU: for ``--verify``, the demo's training and the tests.

megatron-core asks CUDA for a current device, a synchronisation and a random-number state even when every tensor lives
on the CPU. ``install_cpu_shim`` answers these few calls; the model, its forward pass and the checkpoint writer stay
Megatron's. This does not make Megatron support CPUs: Transformer Engine and dropout are off. Importing this file
changes nothing and imports neither torch nor Megatron.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoeval.convert.megatron_save import save_legacy, save_torch_dist
from autoeval.convert.megatron_shim import install_cpu_shim, local_block_spec

__all__ = [
    "build_gpt", "gpt_args", "initialize", "install_cpu_shim", "logits", "save_legacy", "save_torch_dist",
    "transformer_config", "weights",
]  # fmt: skip

# Arguments that TransformerConfig and MLATransformerConfig have under the same name.
_SAME_NAME = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "normalization",
    "add_bias_linear", "add_qkv_bias", "qk_layernorm", "rotary_interleaved", "window_size", "window_attn_skip_freq",
    "apply_residual_connection_post_layernorm", "init_method_std", "mtp_num_layers", "moe_layer_freq",
    "moe_ffn_hidden_size", "moe_router_topk", "moe_router_pre_softmax", "moe_router_score_function",
    "moe_router_topk_scaling_factor", "moe_router_num_groups", "moe_router_group_topk",
    "moe_router_enable_expert_bias", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate",
)  # fmt: skip
_SAME_NAME_LATENT = (
    "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "rope_type", "rotary_base",
    "rotary_percent", "rotary_scaling_factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim",
)  # fmt: skip


def initialize(
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    virtual_pipeline_parallel: int | None = None,
    expert_parallel: int = 1,
    expert_tensor_parallel: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    store: Path | None = None,
    seed: int = 1234,
) -> None:
    """Start gloo and Megatron's ``parallel_state`` for this process, after ``install_cpu_shim``; again is harmless.

    ``store`` is the file by which the processes of one world find each other (not needed for a world of one).
    """
    install_cpu_shim()
    import torch.distributed
    from megatron.core import parallel_state

    if not torch.distributed.is_initialized():
        if store is None:
            store = Path(tempfile.mkdtemp(prefix="gloo-")) / "store"
        # Gloo looks the host's name up to choose an address; in a sandbox that name may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_parallel,
            pipeline_parallel,
            virtual_pipeline_parallel,
            expert_model_parallel_size=expert_parallel,
            expert_tensor_parallel_size=expert_tensor_parallel,
        )
    torch.manual_seed(seed)


def gpt_args(**overrides: Any) -> argparse.Namespace:
    """Arguments under Megatron-LM's names, as its checkpoints keep them: a small GPT-2-style model unless overridden.

    Derived values (``ffn_hidden_size``, ``kv_channels``, ``padded_vocab_size``, ``num_query_groups``) are filled in as
    Megatron-LM's ``validate_args`` does.
    """
    import torch

    values: dict[str, Any] = {
        "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": None, "num_attention_heads": 4, "kv_channels": None,
        "group_query_attention": False, "num_query_groups": 1,
        "normalization": "LayerNorm", "norm_epsilon": 1e-5, "apply_layernorm_1p": False,
        "position_embedding_type": "learned_absolute", "rotary_base": 10000, "rotary_percent": 1.0,
        "rotary_interleaved": False, "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False, "rope_scaling_factor": 8.0, "rope_type": None, "window_size": None,
        "swiglu": False, "squared_relu": False, "openai_gelu": False, "quick_geglu": False, "onnx_safe": None,
        "bias_gelu_fusion": False, "bias_swiglu_fusion": False, "use_legacy_models": False,
        "add_bias_linear": True, "add_qkv_bias": False, "qk_layernorm": False,
        "untie_embeddings_and_output_weights": False,
        "vocab_size": None, "padded_vocab_size": 256, "make_vocab_size_divisible_by": 128,
        "max_position_embeddings": 128, "seq_length": 128,
        "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "expert_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None, "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None, "context_parallel_size": 1, "sequence_parallel": False,
        "num_experts": None, "multi_latent_attention": False, "mtp_num_layers": None,
        "params_dtype": torch.float32, "bf16": False, "fp16": False,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "init_method_std": 0.02, "attention_softmax_in_fp32": True,
        "apply_query_key_layer_scaling": False, "apply_residual_connection_post_layernorm": False,
        "transformer_impl": "local", "use_cpu_initialization": True, "seed": 1234,
        "tokenizer_type": "GPT2BPETokenizer", "model_type": "encoder_or_decoder",
        "ckpt_format": "torch_dist", "use_distributed_optimizer": False,
    }  # fmt: skip
    values.update(overrides)
    args = argparse.Namespace(**values)
    if args.ffn_hidden_size is None:
        args.ffn_hidden_size = int(4 * args.hidden_size * 2 / 3) // 64 * 64 if args.swiglu else 4 * args.hidden_size
    if args.kv_channels is None:
        args.kv_channels = args.hidden_size // args.num_attention_heads
    return args


def build_gpt(args: argparse.Namespace, *, vp_stage: int | None = None) -> Any:
    """Megatron's ``GPTModel`` (local layer spec) in fp32 with the shape that ``args`` describe, randomly initialised.

    Reads ``args`` as saved by Megatron-LM too. Needs ``initialize`` first. ``vp_stage`` is the virtual pipeline chunk.
    Raises what ``TransformerConfig`` raises for arguments that do not go together.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec

    config = transformer_config(args)
    spec = local_block_spec(config, vp_stage=vp_stage)
    further = (
        get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=vp_stage)
        if config.mtp_num_layers
        else None
    )
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage) if stages > 1 else True
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage) if stages > 1 else True
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=first,
        post_process=last,
        parallel_output=False,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=bool(getattr(args, "use_rope_scaling", False)),
        rope_scaling_factor=getattr(args, "rope_scaling_factor", 8.0),
        seq_len_interpolation_factor=getattr(args, "rotary_seq_len_interpolation_factor", None),
        mtp_block_spec=further,
        vp_stage=vp_stage,
    )
    return model.to(torch.float32)


def transformer_config(args: argparse.Namespace) -> Any:
    """``TransformerConfig`` from saved arguments, as Megatron-LM's ``core_transformer_config_from_args`` makes it."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    latent = bool(getattr(args, "multi_latent_attention", False))
    names = _SAME_NAME + (_SAME_NAME_LATENT if latent else ())
    keywords = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if keywords.get("rope_type", "") is None:
        del keywords["rope_type"]  # the configuration's default
    virtual = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    if virtual is not None:
        keywords["virtual_pipeline_model_parallel_size"] = virtual
    epsilon = getattr(args, "norm_epsilon", None) or getattr(args, "layernorm_epsilon", 1e-5)
    return (MLATransformerConfig if latent else TransformerConfig)(
        **keywords,
        **_activation(args),
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        layernorm_epsilon=epsilon,
        layernorm_zero_centered_gamma=bool(getattr(args, "apply_layernorm_1p", False)),
        num_moe_experts=getattr(args, "num_experts", None),
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="allgather",  # the one that needs no CUDA stream
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        expert_model_parallel_size=parallel_state.get_expert_model_parallel_world_size(),
        expert_tensor_parallel_size=parallel_state.get_expert_tensor_parallel_world_size(),
        num_layers_in_first_pipeline_stage=_stage_layers(args, "decoder_first_pipeline_num_layers"),
        num_layers_in_last_pipeline_stage=_stage_layers(args, "decoder_last_pipeline_num_layers"),
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )


def _stage_layers(args: argparse.Namespace, name: str) -> int | None:
    """How the run's pipeline was cut says nothing where this process has the whole model."""
    from megatron.core import parallel_state

    alone = parallel_state.get_pipeline_model_parallel_world_size() == 1
    return None if alone else getattr(args, name, None)


def _activation(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from megatron.core.activations import quick_gelu, squared_relu

    if args.swiglu:
        return {"activation_func": torch.nn.functional.silu, "gated_linear_unit": True}
    if getattr(args, "squared_relu", False):
        return {"activation_func": squared_relu}
    if getattr(args, "quick_geglu", False):
        return {"activation_func": quick_gelu, "gated_linear_unit": True}
    # Megatron's fused GELU is the tanh approximation, the unfused one is exact.
    fused = bool(getattr(args, "bias_gelu_fusion", False))
    if getattr(args, "geglu", False):
        return {"gated_linear_unit": True, "bias_activation_fusion": fused}
    return {"bias_activation_fusion": fused and args.add_bias_linear}


def weights(model: Any) -> Iterator[tuple[str, Any]]:
    """What of the model decides its logits: parameters and the experts' biases (a buffer), under Megatron's names."""
    for name, parameter in model.named_parameters():
        if not name.startswith("mtp."):
            yield name, parameter
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name.endswith("router.expert_bias"))


def logits(model: Any, tokens: Any) -> Any:
    """Megatron's own logits [batch, sequence, padded vocabulary] for token ids [batch, sequence], causal."""
    import torch

    batch, length = tokens.shape
    positions = torch.arange(length).unsqueeze(0).expand(batch, length)
    # True is masked: what Megatron's mask generators give.
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    further, model.config.mtp_num_layers, model.mtp_process = model.config.mtp_num_layers, None, False
    try:  # the heads of multi-token prediction serve training only and ask for labels
        return model(tokens, positions, mask)
    finally:
        model.config.mtp_num_layers, model.mtp_process = further, further is not None
