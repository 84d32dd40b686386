"""A shim so that Megatron's own code runs without a GPU: for ``--verify``, the demo's training and the tests.

megatron-core asks CUDA for a current device, a synchronisation and a random-number state even when every tensor lives
on the CPU. ``install_cpu_shim`` answers these few calls; the model, its forward pass and the checkpoint writer stay
Megatron's. This does not make Megatron support CPUs: fusions, Transformer Engine and dropout are off. Importing this
file changes nothing and imports neither torch nor Megatron.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any


def install_cpu_shim() -> None:
    """Replace the calls by which megatron-core (0.16) touches CUDA; does nothing where a GPU is present."""
    import torch

    if torch.cuda.is_available():
        return
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")  # rotary embedding, attention's buffer, mappings
    cuda.synchronize = lambda *_arguments, **_keywords: None  # the checkpoint writer
    cuda.get_rng_state = lambda *_arguments, **_keywords: torch.get_rng_state()
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *_arguments, **_keywords: self  # tied embeddings with pipeline stages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Transformer Engine and Apex are not installed": that is so
        from megatron.core.tensor_parallel import random

    tracker: Any = random.CudaRNGStatesTracker
    tracker.fork = lambda self, *_arguments, **_keywords: contextlib.nullcontext()  # dropout is 0


def initialize(
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    virtual_pipeline_parallel: int | None = None,
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
        parallel_state.initialize_model_parallel(tensor_parallel, pipeline_parallel, virtual_pipeline_parallel)
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
        "use_rope_scaling": False, "rope_scaling_factor": 8.0,
        "swiglu": False, "squared_relu": False, "openai_gelu": False, "quick_geglu": False, "onnx_safe": None,
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
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    config = transformer_config(args)
    spec = get_gpt_layer_local_spec(
        num_experts=getattr(args, "num_experts", None),
        qk_layernorm=bool(getattr(args, "qk_layernorm", False)),
        normalization=args.normalization,
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
        vp_stage=vp_stage,
    )
    return model.to(torch.float32)


def transformer_config(args: argparse.Namespace) -> Any:
    """``TransformerConfig`` from saved arguments, as Megatron-LM's ``core_transformer_config_from_args`` makes it."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.activations import squared_relu
    from megatron.core.transformer import TransformerConfig

    keywords: dict[str, Any] = {}
    if args.swiglu:
        keywords.update(activation_func=torch.nn.functional.silu, gated_linear_unit=True)
    elif getattr(args, "squared_relu", False):
        keywords.update(activation_func=squared_relu)
    elif getattr(args, "openai_gelu", False):
        keywords.update(activation_func=_tanh_gelu)
    if parallel_state.get_virtual_pipeline_model_parallel_world_size() is not None:
        keywords.update(
            virtual_pipeline_model_parallel_size=parallel_state.get_virtual_pipeline_model_parallel_world_size()
        )
    epsilon = getattr(args, "norm_epsilon", None) or getattr(args, "layernorm_epsilon", 1e-5)
    return TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        kv_channels=args.kv_channels,
        normalization=args.normalization,
        layernorm_epsilon=epsilon,
        layernorm_zero_centered_gamma=bool(getattr(args, "apply_layernorm_1p", False)),
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=bool(getattr(args, "add_qkv_bias", False)),
        qk_layernorm=bool(getattr(args, "qk_layernorm", False)),
        rotary_interleaved=bool(getattr(args, "rotary_interleaved", False)),
        num_moe_experts=getattr(args, "num_experts", None),
        init_method_std=getattr(args, "init_method_std", 0.02),
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        **keywords,
    )


def logits(model: Any, tokens: Any) -> Any:
    """Megatron's own logits [batch, sequence, padded vocabulary] for token ids [batch, sequence], causal."""
    import torch

    batch, length = tokens.shape
    positions = torch.arange(length).unsqueeze(0).expand(batch, length)
    # True is masked: what Megatron's mask generators give.
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    return model(tokens, positions, mask)


def save_torch_dist(save_dir: Path | str, iteration: int, model: Any, args: argparse.Namespace, optimizer: Any = None):
    """Save ``save_dir/iter_NNNNNNN`` by Megatron's ``dist_checkpointing``, in the order of Megatron-LM's
    ``save_checkpoint``: shards, ``.metadata``, ``metadata.json``, the tracker last. Returns the iteration's directory.

    ``model`` may be a list of virtual pipeline chunks. ``optimizer`` is a torch optimizer whose state is saved sharded
    like its parameters. Every process of the world must call this.
    """
    import torch
    import torch.distributed
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    args.ckpt_format = "torch_dist"
    directory = _iteration_directory(save_dir, iteration)
    content_metadata = {"singleton_local_shards": False}
    state = _common_state(iteration, args)
    chunks = model if isinstance(model, list) else [model]
    for number, chunk in enumerate(chunks):
        key = "model" if len(chunks) == 1 else f"model{number}"
        state[key] = chunk.sharded_state_dict(metadata=content_metadata)
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
    state = _common_state(iteration, args)
    chunks = model if isinstance(model, list) else [model]
    for number, chunk in enumerate(chunks):
        key = "model" if len(chunks) == 1 else f"model{number}"
        state[key] = chunk.state_dict_for_save_checkpoint()
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    state["rng_state"] = [{"torch_rng_state": torch.get_rng_state()}]
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


def _tanh_gelu(values: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(values, approximate="tanh")
