"""Importing this file imports what making and saving a Megatron model needs, where megatron-core is."""

import contextlib
import warnings

with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.transformer.moe.moe_utils
    import megatron.core.transformer.multi_latent_attention  # noqa: F401
