"""A causal language model from a Hugging Face directory, scored and sampled in this process.

    model = HuggingFaceModel("outputs/gpt2/iter_0002000/hf")
    model.loglikelihoods([LoglikelihoodRequest(context, continuation)])
    model.generate([GenerationRequest(prompt, max_new_tokens=20)])
    model.unload()

Nothing is fetched and no code that comes with a checkpoint is run. An answer does not depend on what else was asked in
the same call: batches are only a matter of speed.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autoeval.models.activations import with_fast_activations
from autoeval.models.adapter import base_of, is_adapter, with_adapter
from autoeval.models.decoding import decode
from autoeval.models.foreign import refuse_foreign
from autoeval.models.network import Network
from autoeval.models.requests import (
    Cost,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
)
from autoeval.models.scoring import score

logger = logging.getLogger(__name__)

# Tokens of one forward pass. On a CPU more gains nothing (docs/performance.md: 1024 and 2048 cost the same, 256 and 512
# more); fewer are taken where they would not fit the memory that is free, and an out-of-memory error halves it.
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


class HuggingFaceModel:
    """``LanguageModel`` over ``AutoModelForCausalLM``.

    ``dtype``: ``auto`` is the checkpoint's own (where it does not say, bf16 on a GPU), except that on a CPU half precision is computed in fp32 (right numbers
    before fast ones: bf16 changes a few decisions in a hundred); else ``float32``, ``bfloat16``, ``float16``.
    ``device``: ``auto`` is the first GPU if there is one. ``max_seq_len``: tokens the model may see at once, at most
    what its configuration says (``None``: just that). ``batch_tokens``: tokens of one forward pass, or ``auto``.
    ``tokenizer_path``: where the tokenizer is, when it is not beside the weights. ``peft_path``: an adapter that is
    merged into the weights. ``device_map``, ``max_memory``, ``offload_folder``: accelerate's, for a model whose layers
    are to lie on several devices (``auto`` by what is free; a map from module names to devices, ``cpu`` or ``disk``);
    ``device`` is then the one of the embedding. A ``path`` that holds an adapter and no whole model stands for the model that the adapter
    names, with the adapter merged in.

    Raises ``ValueError`` for options that the checkpoint cannot satisfy and ``OSError`` when it cannot be read.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_seq_len: int | None = None,
        batch_tokens: int | str = "auto",
        tokenizer_path: Path | str | None = None,
        peft_path: Path | str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        max_memory: Mapping[int | str, Any] | None = None,
        offload_folder: Path | str | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        directory = Path(path)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such model directory")
        self.path = directory
        if peft_path is None and is_adapter(directory):
            directory, peft_path = base_of(directory), directory
            if tokenizer_path is None and (self.path / "tokenizer_config.json").is_file():
                tokenizer_path = self.path  # with the chat template that it was trained with
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(directory, **safe)
        refuse_foreign(directory, config)
        self.device = torch.device(_device(device))
        self.max_seq_len = _window(config, max_seq_len, directory)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_path or directory, **safe)
        _refuse_appended_end(self.tokenizer)
        if device_map is not None:
            laid = {"device_map": device_map, "max_memory": max_memory, "offload_folder": offload_folder}
            safe |= {name: value for name, value in laid.items() if value is not None}
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype_of(config, dtype, self.device), **safe)
        if peft_path is not None:
            model = with_adapter(model, Path(peft_path))
        self.model: Any = with_fast_activations((model if device_map is not None else model.to(self.device)).eval())
        self.batch_tokens = _budget(batch_tokens, self.device)
        self.cost = Cost()
        self._network = Network(self.model)
        self.device = self._network.device
        self.stop_ids = _end_of_text(self.model, self.tokenizer)

    @property
    def prefix_token(self) -> int:
        """What an empty context is conditioned on: BOS, else EOS. Raises ``ValueError`` when there is neither."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ValueError(f"{self.path}: the tokenizer has neither BOS nor EOS, so an empty context cannot be scored")

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        """Log-probabilities of continuations, in the order of ``requests``.

        Contexts that do not fit are cut from the left (``truncated_tokens``). Raises ``ValueError`` for a continuation
        that does not fit by itself, for token ids that the model does not have, and when the model gives NaN.
        """
        with self._measured():
            return score(self, self._network, requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Continue prompts, in the order of ``requests``; greedy results are those of ``model.generate`` row by row.

        Prompts that leave no room for ``max_new_tokens`` are cut from the left (``truncated_tokens``).
        Raises ``ValueError`` as ``loglikelihoods`` does.
        """
        with self._measured():
            return decode(self, self._network, requests)

    def unload(self) -> None:
        """Free the weights; the model cannot be asked any more."""
        self.model = None
        self._network = None  # type: ignore[assignment]  # nothing may use it from here on
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        if self.model is None:
            raise ValueError(f"{self.path}: the model has been unloaded")
        started = time.perf_counter()
        with torch.inference_mode():
            yield
        self.cost.seconds += time.perf_counter() - started


def _refuse_appended_end(tokenizer: Any) -> None:
    """Prompts that end with the end of the text get answers to nothing, and scores that look like scores."""
    ids = tokenizer("a")["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer puts {tokenizer.eos_token!r} after every text, so no prompt could "
            "be continued; set add_eos_token to false in tokenizer_config.json (or change its post-processor)"
        )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(config: Any, name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        chosen = getattr(torch, name, None)
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise ValueError(f"dtype {name!r}: expected auto, float32, bfloat16 or float16")
        return chosen
    stored = getattr(config, "dtype", None) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if isinstance(stored, str):
        stored = getattr(torch, stored)
    return torch.float32 if device.type == "cpu" else stored


def _window(config: Any, asked: int | None, directory: Path) -> int:
    """Tokens in the model's window: ``asked``, or what the configuration says."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    if own is None:
        if asked is None:
            logger.warning("%s: config.json gives no max_position_embeddings; 2048 tokens are assumed", directory)
        return asked or 2048
    if asked is None:
        return int(own)
    if not 1 < asked <= own:
        raise ValueError(f"max_seq_len {asked}: {directory}/config.json allows 2 to {own} (max_position_embeddings)")
    return asked


def _budget(asked: int | str, device: torch.device) -> int:
    if asked == "auto":
        return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    if not isinstance(asked, int) or asked < 1:
        raise ValueError(f"batch_tokens {asked!r}: expected auto or a positive number of tokens")
    return asked


def _end_of_text(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a generation: those of the generation configuration and the tokenizer's EOS."""
    ids: set[int] = set()
    for source in (getattr(model, "generation_config", None), tokenizer):
        found = getattr(source, "eos_token_id", None)
        ids.update(found if isinstance(found, list) else [] if found is None else [found])
    return frozenset(ids)
