"""Making a model known to HELM for as long as it is evaluated, and forgotten afterwards.

HELM keeps models, deployments, tokenizer configurations and loaded tokenizers in module- and class-level tables keyed
by *name* and never removes one. A second checkpoint under the same name would get the first one's objects; many names
would never be freed. So: one unique name per checkpoint, and everything is taken out when the checkpoint is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoeval.models.requests import LanguageModel

ORGANIZATION = "autoeval"


def helm_model_name(model_name: str) -> str:
    """``model_name`` as HELM wants it: ``organization/engine``, free of the characters of run-entry descriptions."""
    return f"{ORGANIZATION}/{re.sub(r'[^A-Za-z0-9._-]', '_', model_name)}"


def usable_window(model: LanguageModel) -> int:
    """Tokens HELM may fill with prompt and completion: HELM counts without the special tokens the tokenizer adds."""
    return model.max_seq_len - int(model.tokenizer.num_special_tokens_to_add(pair=False))


@contextmanager
def registered(model: LanguageModel, *, name: str) -> Iterator[None]:
    """HELM knows ``model`` as ``name`` (from ``helm_model_name``) inside the block, and nothing of it afterwards.

    Raises ``ValueError`` when the name is taken (two models under one name would share HELM's caches), and for a server
    without a local tokenizer: HELM counts tokens to fit prompts into the window.
    """
    from helm.benchmark import model_deployment_registry as deployments
    from helm.benchmark import model_metadata_registry as metadata
    from helm.benchmark import tokenizer_config_registry as tokenizers

    from autoeval.helm.runner import ENGINES, EngineClient

    if name in ENGINES or name in deployments.DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT:
        raise ValueError(f"HELM already knows a model {name!r}; every checkpoint needs its own name")
    if not hasattr(model.tokenizer, "num_special_tokens_to_add"):
        raise ValueError("HELM counts tokens, and this model has no tokenizer here; give the server's tokenizer_path")
    ENGINES[name] = model
    try:
        tokenizers.register_tokenizer_config(_tokenizer_config(name, model.tokenizer))
        metadata.register_model_metadata(metadata.get_unknown_model_metadata(name))
        deployments.register_model_deployment(
            deployments.ModelDeployment(
                name=name,
                model_name=name,
                tokenizer_name=name,
                max_sequence_length=usable_window(model),
                client_spec=deployments.ClientSpec(f"{EngineClient.__module__}.{EngineClient.__name__}"),
            )
        )
        yield
    finally:
        _forget(name)


def _tokenizer_config(name: str, tokenizer: Any) -> Any:
    from helm.benchmark.tokenizer_config_registry import TokenizerConfig, TokenizerSpec

    end_of_text = tokenizer.eos_token or ""
    return TokenizerConfig(
        name=name,
        tokenizer_spec=TokenizerSpec("autoeval.helm.tokenizer.EngineTokenizer", {}),
        end_of_text_token=end_of_text,
        prefix_token=tokenizer.bos_token or end_of_text,
    )


def _forget(name: str) -> None:
    """Take ``name`` out of every table of HELM's that holds it."""
    from helm.benchmark import model_deployment_registry as deployments
    from helm.benchmark import model_metadata_registry as metadata
    from helm.benchmark import tokenizer_config_registry as tokenizers

    from autoeval.helm.runner import ENGINES

    ENGINES.pop(name, None)
    metadata.MODEL_NAME_TO_MODEL_METADATA.pop(name, None)
    deployments.DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT.pop(name, None)
    tokenizers.TOKENIZER_NAME_TO_CONFIG.pop(name, None)
    lists: tuple[list[Any], ...] = (
        metadata.ALL_MODELS_METADATA,
        deployments.ALL_MODEL_DEPLOYMENTS,
        tokenizers.ALL_TOKENIZER_CONFIGS,
    )
    for registry in lists:
        registry[:] = [entry for entry in registry if entry.name != name]
