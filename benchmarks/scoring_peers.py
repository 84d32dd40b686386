"""The other systems of ``benchmarks/scoring.py``, and how what goes through a model is counted.

``lm_eval`` and ``helm`` are those programs' own classes. OpenCompass cannot be installed beside them: its loops are
written here after ``HuggingFaceCausalLM`` (``get_ppl`` and ``_single_generate``), at batch size 1, the only one at
which its perplexities are right (it pads on the left without position ids).
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Tokens = tuple[int, ...]


@dataclass
class Meter:
    """Tokens through the layers, and positions at which logits were computed."""

    tokens: int = 0
    logits: int = 0


@contextmanager
def metered(model: Any, meter: Meter) -> Iterator[None]:
    """Count what others put through ``model``."""

    def body(_module: Any, arguments: Any, named: Any) -> None:
        given = named.get("input_ids", arguments[0] if arguments else None)
        meter.tokens += 0 if given is None else given.numel()

    def head(_module: Any, arguments: Any) -> None:
        meter.logits += arguments[0].numel() // arguments[0].shape[-1]

    hooks = [
        model.get_decoder().register_forward_pre_hook(body, with_kwargs=True),
        model.get_output_embeddings().register_forward_pre_hook(head),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class LmEval:
    """lm-evaluation-harness's ``HFLM`` over the same loaded model."""

    def __init__(self, model: Any, tokenizer: Any, site: str | None, batch_size: int) -> None:
        if site:
            sys.path.append(site)
        from lm_eval.models.huggingface import HFLM

        self.model, self.tokenizer = model, tokenizer
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")

    def score(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        encoded = [(("", str(number)), list(one), list(other)) for number, (one, other) in enumerate(pairs)]
        return [value for value, _ in self.lm._loglikelihood_tokens(encoded, disable_tqdm=True)]

    def generate(self, texts: Sequence[str], count: int) -> list[str]:
        from lm_eval.api.instance import Instance

        limits = {"until": [self.tokenizer.eos_token], "max_gen_toks": count, "do_sample": False}
        asked = [Instance("generate_until", {}, (text, limits), number) for number, text in enumerate(texts)]
        with contextlib.redirect_stderr(io.StringIO()):
            return self.lm.generate_until(asked, disable_tqdm=True)


class OpenCompass:
    """One prompt at a time: the loss over all of it, or greedy text without stop strings."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def perplexities(self, texts: Sequence[Tokens]) -> list[float]:
        """The log-likelihood of each text; in double, for in fp32 a long text's sum is off by 5e-4."""
        answers = []
        for text in texts:
            inputs = torch.tensor([text])
            logits = self.model(inputs).logits[..., :-1, :].contiguous()
            loss = torch.nn.CrossEntropyLoss(reduction="none")(logits.view(-1, logits.shape[-1]), inputs[0, 1:])
            answers.append(-float(loss.double().sum()))
        return answers

    def generate(self, texts: Sequence[Tokens], count: int) -> list[str]:
        answers = []
        for text in texts:
            inputs = torch.tensor([text])
            mask = torch.ones_like(inputs)
            made = self.model.generate(
                inputs, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
            )
            answers.append(self.tokenizer.decode(made[0, len(text) :], skip_special_tokens=True))
        return answers


class Helm:
    """crfm-helm's ``HuggingFaceClient`` with its own loaded model of the same directory and without its cache."""

    def __init__(self, directory: Path) -> None:
        from helm.clients.huggingface_client import HuggingFaceClient, HuggingFaceServerFactory
        from helm.common.cache import BlackHoleCacheConfig
        from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

        config = BlackHoleCacheConfig()
        tokenizer = HuggingFaceTokenizer(config, "benchmark/model", pretrained_model_name_or_path=str(directory))
        self.client = HuggingFaceClient(
            config, tokenizer, pretrained_model_name_or_path=str(directory), apply_chat_template=False, device="cpu"
        )
        self._factory = HuggingFaceServerFactory
        self.answer([self.requests(["a"], 1)[0]])
        self.model = self._factory._servers["benchmark/model"].model.eval()

    def requests(self, prompts: Sequence[str], new_tokens: int) -> list[Any]:
        """HELM's requests: ``new_tokens`` of greedy text, or the prompt's own log-probabilities where that is 0."""
        from helm.common.request import Request

        fixed = {"model": "benchmark/model", "model_deployment": "benchmark/model", "temperature": 0.0}
        return [
            Request(prompt=prompt, max_tokens=new_tokens, echo_prompt=not new_tokens, stop_sequences=[], **fixed)
            for prompt in prompts
        ]

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        answers = []
        for request in requests:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                answers.append(self.client.make_request(request))
            if not answers[-1].success:
                raise SystemExit(f"HELM's client failed: {answers[-1].error}")
        return answers
