"""Inferencers: prompts to the model, answers to predictions. OpenICL's class names.

Every inferencer returns one ``Prediction`` per sample. A log-probability that is not a finite number is an error: a
broken model has no score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoeval.datasets.names import look_up
from autoeval.models.requests import GenerationRequest, LanguageModel, LoglikelihoodRequest, LoglikelihoodResult
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.sample import Prompting, Sample, most_examples


@dataclass(frozen=True)
class Prediction:
    """``text`` is a label or a generated text; ``normalized`` the label by length-normalised likelihood (``acc_norm``).

    ``record`` is what the predictions file keeps, in OpenCompass's shape.
    """

    text: str
    record: dict[str, Any]
    normalized: str | None = None
    choices: int | None = None


class PPLInferencer:
    """Ranks whole prompts by perplexity, as OpenCompass does.

    PPL = - sum of log p over all tokens but the first / number of tokens (special tokens that the tokenizer adds
    included), in nats. The smallest wins, the first of equals. With ``normalizing_str``: the answer (what follows
    ``sep_token``) given its context, minus the answer given ``normalizing_str``, each as a mean over answer tokens.
    """

    ranks = True

    def __init__(self, normalizing_str: str | None = None) -> None:
        self.normalizing_str = normalizing_str

    def infer(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> list[Prediction]:
        encode = _Encoder(model)
        prepared = [self._prepare(model, sample, prompting, encode) for sample in samples]
        results = iter(model.loglikelihoods([request for item in prepared for request in item.requests]))
        predictions = []
        for sample, item in zip(samples, prepared, strict=True):
            record: dict[str, Any] = {"in-context examples": item.ice, **item.notes}
            values = {}
            for label, prompt in zip(item.labels, item.prompts, strict=True):
                values[label] = self._perplexity(sample, results)
                record[f"label: {label}"] = {
                    "testing input": prompt.replace(item.ice, "", 1) if item.ice else prompt,
                    "prompt": prompt,
                    "PPL": values[label],
                }
            best = str(min(values, key=lambda label: values[label]))
            record |= {"prediction": best, "gold": prompting.gold(sample.row)}
            predictions.append(Prediction(best, record, choices=len(item.labels)))
        return predictions

    def _prepare(self, model: LanguageModel, sample: Sample, prompting: Prompting, encode: _Encoder) -> _Ranked:
        labels = prompting.labels(sample.row)
        normalizes = self.normalizing_str is not None

        def prompts_of(ice: str) -> list[str]:
            return [prompting.prompt(sample.row, ice, label=label, keep_sep=normalizes) for label in labels]

        def fits(ice: str) -> bool:
            return all(len(encode(self._whole(prompt, prompting))) <= model.max_seq_len for prompt in prompts_of(ice))

        ice, dropped = most_examples(sample, fits, prompting.ice)
        prompts = prompts_of(ice)
        item = _Ranked(labels, [self._whole(prompt, prompting) for prompt in prompts], ice)
        cut = 0
        for prompt in prompts:
            if self.normalizing_str is not None:
                context, answer = _split(prompt, prompting.template.sep_token, sample)
                item.requests.append(_after(encode, context, answer))
                item.requests.append(_after(encode, self.normalizing_str, answer))
                continue
            tokens = encode(prompt)
            if not tokens:
                raise ValueError(f"{sample.row.where}: the prompt is empty")
            cut = max(cut, len(tokens) - model.max_seq_len)
            tokens = tokens[-model.max_seq_len :]
            item.requests.append(LoglikelihoodRequest(tokens[:1], tokens[1:]))
        item.note(dropped, cut)
        return item

    def _whole(self, prompt: str, prompting: Prompting) -> str:
        sep = prompting.template.sep_token
        return prompt.replace(sep, "") if sep and self.normalizing_str is not None else prompt

    def _perplexity(self, sample: Sample, results: Any) -> float:
        result = next(results)
        total = finite(result, sample)
        if self.normalizing_str is None:
            return -total / (1 + len(result.token_logprobs))
        other = next(results)
        count = len(result.token_logprobs)
        return -total / count + finite(other, sample) / len(other.token_logprobs)


class LLInferencer:
    """Ranks continuations by their log-likelihood given the prompt, as lm-evaluation-harness does.

    ``continuation``: a template, or one per label. The prompt's trailing spaces go to the continuation, and prompt and
    continuation are tokenized together. ``acc`` takes the largest log-likelihood, ``acc_norm`` the largest per byte of
    the continuation (UTF-8, without the leading space). ``add_special_tokens``: whether the tokenizer may put its BOS
    first, as in training (lm-evaluation-harness leaves it out unless asked with ``add_bos_token``).
    """

    ranks = True

    def __init__(self, continuation: Any = " {choice}", add_special_tokens: bool = True) -> None:
        self.continuation = PromptTemplate(continuation)
        self.add_special_tokens = add_special_tokens

    def infer(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> list[Prediction]:
        encode = _Encoder(model, self.add_special_tokens)
        prepared = [self._prepare(model, sample, prompting, encode) for sample in samples]
        results = iter(model.loglikelihoods([request for item in prepared for request in item.requests]))
        predictions = []
        for sample, item in zip(samples, prepared, strict=True):
            record: dict[str, Any] = {"in-context examples": item.ice, **item.notes}
            values, normalized = {}, {}
            for label, text in zip(item.labels, item.continuations, strict=True):
                values[label] = finite(next(results), sample)
                normalized[label] = values[label] / max(1, len(text.lstrip().encode()))
                record[f"label: {label}"] = {
                    "testing input": item.prompts[0],
                    "continuation": text,
                    "loglikelihood": values[label],
                }
            best = str(max(values, key=lambda label: values[label]))
            best_normalized = str(max(normalized, key=lambda label: normalized[label]))
            record |= {
                "prediction": best,
                "prediction (normalized)": best_normalized,
                "gold": prompting.gold(sample.row),
            }
            predictions.append(Prediction(best, record, normalized=best_normalized, choices=len(item.labels)))
        return predictions

    def _prepare(self, model: LanguageModel, sample: Sample, prompting: Prompting, encode: _Encoder) -> _Ranked:
        labels = prompting.labels(sample.row)
        continuations = [self._text(sample.row, label, prompting) for label in labels]

        def requests_of(ice: str) -> list[LoglikelihoodRequest]:
            context = prompting.prompt(sample.row, ice)
            return [encode_pair(encode, context, text) for text in continuations]

        def overflow(requests: Sequence[LoglikelihoodRequest]) -> int:
            longest = max(len(request.context) + len(request.continuation) - 1 for request in requests)
            return longest - model.max_seq_len

        ice, dropped = most_examples(
            sample,
            lambda ice: overflow(requests_of(ice)) <= 0,
            lambda rows: prompting.ice(rows, lambda row: self._text(row, prompting.gold(row), prompting)),
        )
        item = _Ranked(labels, [prompting.prompt(sample.row, ice)], ice, continuations)
        item.requests.extend(requests_of(ice))
        if not all(request.continuation for request in item.requests):
            raise ValueError(f"{sample.row.where}: a choice is empty, or merges into the prompt's last token")
        item.note(dropped, overflow(item.requests))  # the model cuts what is left over from the left
        return item

    def _text(self, row: Any, label: Any, prompting: Prompting) -> str:
        return self.continuation.format(prompting.columns(row, label), label=label)


class GenInferencer:
    """Generates ``max_out_len`` tokens at most, up to the first stop string. ``temperature`` 0 is greedy.

    A sampled text depends on ``seed`` and the item alone.
    """

    ranks = False

    def __init__(
        self,
        max_out_len: int = 256,
        stop: Sequence[str] = (),
        stopping_criteria: Sequence[str] = (),  # OpenCompass's name for ``stop``
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if max_out_len < 1:
            raise ValueError(f"max_out_len {max_out_len}: expected a positive number of tokens")
        stops = [stop] if isinstance(stop, str) else list(stop)
        self.stop = tuple(dict.fromkeys([*stops, *stopping_criteria]))
        self.max_out_len = max_out_len
        self.temperature, self.top_p, self.seed = temperature, top_p, seed

    def infer(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> list[Prediction]:
        encode = _Encoder(model)
        room = model.max_seq_len - self.max_out_len
        requests, prompts, notes = [], [], []
        for sample in samples:

            def fits(ice: str, sample: Sample = sample) -> bool:
                return len(encode(prompting.prompt(sample.row, ice, blank=True))) <= room

            ice, dropped = most_examples(sample, fits, prompting.ice)
            prompt = prompting.prompt(sample.row, ice, blank=True)
            tokens = encode(prompt)
            requests.append(self._request(sample, tokens))
            prompts.append(prompt)
            notes.append(_notes(dropped, len(tokens) - room))
        predictions = []
        for sample, prompt, note, result in zip(samples, prompts, notes, model.generate(requests), strict=True):
            if not all(map(math.isfinite, result.token_logprobs)):
                raise ValueError(f"{sample.row.where}: a log-probability is not finite: the model's weights are broken")
            gold = sample.row[prompting.reader.output_column]
            record = {"origin_prompt": prompt, "prediction": result.text, "gold": gold, **note}
            predictions.append(Prediction(result.text, record))
        return predictions

    def _request(self, sample: Sample, tokens: tuple[int, ...]) -> GenerationRequest:
        seed = None
        if self.temperature > 0:
            seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{sample.key}".encode()).digest()[:4], "big")
        return GenerationRequest(tokens, self.max_out_len, self.stop, self.temperature, self.top_p, seed)


@dataclass
class _Ranked:
    """The requests of one ranked sample."""

    labels: list[Any]
    prompts: list[str]
    ice: str
    continuations: list[str] = field(default_factory=list)
    requests: list[LoglikelihoodRequest] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, dropped: int, cut: int) -> None:
        self.notes = _notes(dropped, cut)


class _Encoder:
    """Text to token ids with the special tokens that the tokenizer adds itself (or not); each text once."""

    def __init__(self, model: LanguageModel, special: bool = True) -> None:
        self._tokenizer = model.tokenizer
        self._special = special
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}

    def __call__(self, text: str, special: bool | None = None) -> tuple[int, ...]:
        special = self._special if special is None else special
        key = (text, special)
        if key not in self._known:
            # verbose: texts longer than the window are our business, not worth a warning each
            ids = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            self._known[key] = tuple(ids)
        return self._known[key]


def encode_pair(encode: Callable[..., tuple[int, ...]], context: str, continuation: str) -> LoglikelihoodRequest:
    """Tokenize both together and cut where the context's own tokens end (lm-evaluation-harness's rule)."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        return LoglikelihoodRequest((), encode(continuation, special=False))
    return _after(encode, stripped, continuation)


def _after(encode: Callable[..., tuple[int, ...]], context: str, continuation: str) -> LoglikelihoodRequest:
    if not context:
        return LoglikelihoodRequest((), encode(continuation, special=False))
    head, whole = encode(context), encode(context + continuation)
    return LoglikelihoodRequest(whole[: len(head)], whole[len(head) :])


def _split(prompt: str, sep: str | None, sample: Sample) -> tuple[str, str]:
    """Context and answer at ``sep``."""
    if not sep or sep not in prompt:
        raise ValueError(f"{sample.row.where}: normalizing_str needs a sep_token in every template")
    context, answer = prompt.split(sep, 1)
    return context, answer.replace(sep, "")


def _notes(dropped: int, cut: int) -> dict[str, int]:
    """What had to go for the prompt to fit the window."""
    notes = {}
    if dropped > 0:
        notes["dropped in-context examples"] = dropped
    if cut > 0:
        notes["truncated tokens"] = cut
    return notes


def finite(result: LoglikelihoodResult, sample: Sample) -> float:
    """The total log-probability. Raises ``ValueError`` for NaN and infinities."""
    total = result.logprob
    if not math.isfinite(total):
        raise ValueError(f"{sample.row.where}: the log-probability is {total}: the model's weights are broken")
    return total


INFERENCERS: dict[str, type] = {
    "PPLInferencer": PPLInferencer,
    "LLInferencer": LLInferencer,
    "loglikelihood": LLInferencer,
    "GenInferencer": GenInferencer,
}


def build_inferencer(options: Mapping[str, Any]) -> PPLInferencer | LLInferencer | GenInferencer:
    """From ``dict(type="GenInferencer", max_out_len=16)``."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(INFERENCERS, options.get("type", ""), "inferencer")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"inferencer {chosen.__name__}: {error}") from error
