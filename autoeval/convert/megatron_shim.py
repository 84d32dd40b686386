"""What lets megatron-core (0.16) run without a GPU and without Transformer Engine: a few calls answered otherwise.

Importing this file changes nothing and imports neither torch nor Megatron.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any


def install_cpu_shim() -> None:
    """Replace the calls by which megatron-core touches CUDA; does nothing where a GPU is present."""
    import torch

    if torch.cuda.is_available():
        return
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")  # rotary embedding, attention's buffer, router, mappings
    cuda.synchronize = lambda *_arguments, **_keywords: None  # the checkpoint writer
    cuda.get_rng_state = lambda *_arguments, **_keywords: torch.get_rng_state()
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *_arguments, **_keywords: self  # tied embeddings with pipeline stages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Transformer Engine and Apex are not installed": that is so
        from megatron.core.fusions import fused_softmax
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer import multi_latent_attention
        from megatron.core.transformer.moe import moe_utils

    torch.compiler.set_stance("force_eager")  # the fused functions: the same numbers without a C++ compiler
    tracker: Any = random.CudaRNGStatesTracker
    tracker.fork = lambda self, *_arguments, **_keywords: contextlib.nullcontext()  # dropout is 0
    # Without Transformer Engine the router asks for this name without having defined it.
    if not hasattr(moe_utils, "te_general_gemm"):
        vars(moe_utils)["te_general_gemm"] = None
    if not isinstance(multi_latent_attention.TELinear, type):
        vars(multi_latent_attention)["HAVE_TE"] = False  # it takes the mock-up of the library for the library
    softmax: Any = fused_softmax
    softmax.get_sliding_window_causal_mask = _on_cpu(softmax.get_sliding_window_causal_mask)


def _on_cpu(function: Any) -> Any:
    """``function``, whose tensors with ``device="cuda"`` are made on the CPU."""
    from torch.overrides import TorchFunctionMode

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return called(*args, **kwargs)

    def call(*arguments: Any) -> Any:
        with OnCpu():
            return function(*arguments)

    return call


def local_block_spec(config: Any, *, vp_stage: int | None = None) -> Any:
    """Megatron's own local layers for ``config``, with the two that it leaves to Transformer Engine filled in: the
    attention behind multi-latent attention, and norms whose weight is stored minus one."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
    )
    norm = zero_centered_norm() if config.layernorm_zero_centered_gamma else None
    if norm:
        block.layer_norm = norm
    for layer in block.layer_specs:
        parts = layer.submodules
        attention = parts.self_attention.submodules
        if config.multi_latent_attention:
            attention.core_attention = latent_core_attention()
        if norm:
            parts.input_layernorm = parts.pre_mlp_layernorm = norm
            for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
                if config.qk_layernorm and hasattr(attention, name):
                    setattr(attention, name, norm)
    return block


def latent_core_attention() -> Any:
    """Megatron's DotProductAttention, told the values' size, which only Transformer Engine's is told."""
    import copy

    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class LatentCoreAttention(DotProductAttention):
        def __init__(
            self, config: Any, *arguments: Any, k_channels: int = 0, v_channels: int = 0, **keywords: Any
        ) -> None:
            config = copy.copy(config)
            config.kv_channels = v_channels or config.v_head_dim
            super().__init__(config, *arguments, **keywords)

    return LatentCoreAttention


def zero_centered_norm() -> Any:
    """``layernorm_zero_centered_gamma`` as Megatron's FusedLayerNorm defines it: one is added to the stored weight."""
    import torch
    from torch.nn import functional

    class ZeroCenteredLayerNorm(torch.nn.LayerNorm):
        def forward(self, values: Any) -> Any:
            return functional.layer_norm(values, self.normalized_shape, self.weight + 1, self.bias, self.eps)

    class ZeroCenteredRMSNorm(torch.nn.RMSNorm):
        def forward(self, values: Any) -> Any:
            return functional.rms_norm(values, self.normalized_shape, self.weight + 1, self.eps)

    class ZeroCenteredNorm:
        def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_keywords: Any) -> Any:
            rms = config.normalization == "RMSNorm"
            return (ZeroCenteredRMSNorm if rms else ZeroCenteredLayerNorm)(hidden_size, eps=eps)

    return ZeroCenteredNorm
