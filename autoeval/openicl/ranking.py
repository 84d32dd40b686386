"""Inferencers that rank: by perplexity of whole prompts, by log-likelihood of continuations, by one token's probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoeval.models.requests import LanguageModel, LoglikelihoodRequest, LoglikelihoodResult
from autoeval.openicl.asking import Asked, Record
from autoeval.openicl.encoding import Encoder, encode_after, encode_pair, finite, truncation_notes
from autoeval.openicl.prompt_template import PromptTemplate, Turn
from autoeval.openicl.sample import Prompting, Sample, most_examples


@dataclass
class _Ranked:
    """The requests of one sample. ``texts`` are prompts, or continuations of ``prompt``, one a label."""

    labels: list[Any]
    texts: list[str]
    prompt: str
    ice: str
    requests: list[LoglikelihoodRequest] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


class PPLInferencer:
    """Ranks whole prompts by perplexity, as OpenCompass does.

    PPL = - sum of log p over all tokens but the first / number of tokens (special tokens that the tokenizer adds
    included), in nats. The smallest wins, the first of equals. With ``normalizing_str``: the answer (what follows
    ``sep_token``) given its context, minus the answer given ``normalizing_str``, each as a mean over answer tokens.
    Records have beside it ``BPB``, the bits per UTF-8 byte of the whole prompt.
    """

    kind = "rank"
    continuation: PromptTemplate | None = None

    def __init__(self, normalizing_str: str | None = None) -> None:
        self.normalizing_str = normalizing_str

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        encode = Encoder(model, prompting.style.special_tokens)
        prepared = [self._prepare(model, sample, prompting, encode) for sample in samples]
        return _asked(prepared, samples, lambda *item: self._record(prompting, *item))

    def _record(
        self, prompting: Prompting, sample: Sample, item: _Ranked, results: Iterator[LoglikelihoodResult]
    ) -> Record:
        record: Record = {"in-context examples": item.ice, **item.notes}
        values = {}
        for label, prompt in zip(item.labels, item.texts, strict=True):
            values[label], bits = self._perplexity(sample, results)
            record[f"label: {label}"] = {
                "testing input": self._whole(prompting.prompt(sample.row, label=label), prompting),
                "prompt": prompt,
                "PPL": values[label],
                **({} if bits is None else {"BPB": bits / max(1, len(prompt.encode()))}),
            }
        best = str(min(values, key=lambda label: values[label]))
        return record | {"prediction": best, "gold": prompting.gold(sample.row)}

    def _prepare(self, model: LanguageModel, sample: Sample, prompting: Prompting, encode: Encoder) -> _Ranked:
        labels = prompting.labels(sample.row)
        normalizes = self.normalizing_str is not None

        def prompts_of(ice: Sequence[Turn]) -> list[str]:
            return [prompting.prompt(sample.row, ice, label=label, keep_sep=normalizes) for label in labels]

        def fits(ice: Sequence[Turn]) -> bool:
            return all(len(encode(self._whole(prompt, prompting))) <= model.max_seq_len for prompt in prompts_of(ice))

        ice, dropped = most_examples(sample, prompting, fits)
        prompts = prompts_of(ice)
        texts = [self._whole(prompt, prompting) for prompt in prompts]
        item = _Ranked(labels, texts, "", prompting.style.render(ice) if ice else "")
        cut = 0
        for prompt in prompts:
            if self.normalizing_str is not None:
                context, answer = _split(prompt, prompting.template.sep_token, sample)
                item.requests.append(encode_after(encode, context, answer))
                item.requests.append(encode_after(encode, self.normalizing_str, answer))
                cut = max(cut, _overflow(item.requests[-2:], model))
                continue
            tokens = encode(prompt)
            if not tokens:
                raise ValueError(f"{sample.row.where}: the prompt is empty")
            cut = max(cut, len(tokens) - model.max_seq_len)
            tokens = tokens[-model.max_seq_len :]
            item.requests.append(LoglikelihoodRequest(tokens[:1], tokens[1:]))
        item.notes = truncation_notes(dropped, cut)
        return item

    def _whole(self, prompt: str, prompting: Prompting) -> str:
        sep = prompting.template.sep_token
        return prompt.replace(sep, "") if sep and self.normalizing_str is not None else prompt

    def _perplexity(self, sample: Sample, results: Iterator[LoglikelihoodResult]) -> tuple[float, float | None]:
        """PPL in nats a token, and the bits of the whole prompt."""
        result = next(results)
        total = finite(result, sample)
        if self.normalizing_str is None:
            return -total / (1 + len(result.token_logprobs)), -total / math.log(2)
        other = next(results)
        return -total / len(result.token_logprobs) + finite(other, sample) / len(other.token_logprobs), None


class LLInferencer:
    """Ranks continuations by their log-likelihood given the prompt, as lm-evaluation-harness does.

    ``continuation``: a template, or one per label. The prompt's trailing spaces go to the continuation, and prompt and
    continuation are tokenized together. ``acc`` takes the largest log-likelihood, ``acc_norm`` the largest per byte of
    the continuation (UTF-8, without the leading space), ``acc_norm_token`` the largest per token. ``bpb`` is the bits
    per byte of the right continuation. The prompt too may differ from label to label (``{choice}`` in it, or a template per
    label): winogrande puts the choices into the context. ``add_special_tokens``: whether the tokenizer may put its BOS
    first, as in training (lm-evaluation-harness leaves it out unless asked with ``add_bos_token``).
    """

    kind = "rank"

    def __init__(self, continuation: Any = " {choice}", add_special_tokens: bool = True) -> None:
        self.continuation = PromptTemplate(continuation)
        self.add_special_tokens = add_special_tokens

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        encode = Encoder(model, self.add_special_tokens and prompting.style.special_tokens)
        prepared = [self._prepare(model, sample, prompting, encode) for sample in samples]
        return _asked(prepared, samples, lambda *item: self._record(prompting, *item))

    def _record(
        self, prompting: Prompting, sample: Sample, item: _Ranked, results: Iterator[LoglikelihoodResult]
    ) -> Record:
        record: Record = {"in-context examples": item.ice, **item.notes}
        plain, by_bytes, by_tokens = {}, {}, {}
        for label, text in zip(item.labels, item.texts, strict=True):
            result = next(results)
            plain[label] = finite(result, sample)
            size = max(1, len(text.lstrip().encode()))
            by_bytes[label] = plain[label] / size
            by_tokens[label] = plain[label] / len(result.token_logprobs)
            record[f"label: {label}"] = {
                "testing input": item.prompt,
                "continuation": text,
                "loglikelihood": plain[label],
                "BPB": -plain[label] / size / math.log(2),
                "greedy": result.is_greedy,
            }
        for name, values in (("", plain), (" (normalized)", by_bytes), (" (by tokens)", by_tokens)):
            record["prediction" + name] = str(max(values, key=lambda label: values[label]))
        return record | {"gold": prompting.gold(sample.row)}

    def _prepare(self, model: LanguageModel, sample: Sample, prompting: Prompting, encode: Encoder) -> _Ranked:
        labels = prompting.labels(sample.row)
        texts = [prompting.answer(sample.row, label) for label in labels]

        def requests_of(ice: Sequence[Turn]) -> list[LoglikelihoodRequest]:
            contexts = [prompting.prompt(sample.row, ice, label=label, generate=True) for label in labels]
            return [encode_pair(encode, *pair) for pair in zip(contexts, texts, strict=True)]

        ice, dropped = most_examples(sample, prompting, lambda ice: _overflow(requests_of(ice), model) <= 0)
        prompt = prompting.prompt(sample.row, ice, label=labels[0], generate=True)
        item = _Ranked(labels, texts, prompt, prompting.style.render(ice) if ice else "")
        item.requests = requests_of(ice)
        if not all(request.continuation for request in item.requests):
            raise ValueError(f"{sample.row.where}: a choice is empty, or merges into the prompt's last token")
        # The model cuts what is left over from the left.
        item.notes = truncation_notes(dropped, _overflow(item.requests, model))
        return item


class CLPInferencer:
    """The probability of each choice as the next token, relative to the other choices (OpenCompass's conditional
    log-probabilities). Choices are single tokens: ``choices``, or the labels' texts of ``reader_cfg.choices_column``.

    ``prediction`` is the list of probabilities, ``pred_label`` the index of the largest.
    """

    kind = "probability"
    continuation: PromptTemplate | None = None

    def __init__(self, choices: Sequence[str] | None = None, single_token: bool = True) -> None:
        if not single_token:
            raise ValueError("CLPInferencer compares single tokens; for longer choices use LLInferencer")
        self.choices = None if choices is None else tuple(choices)

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        encode = Encoder(model, prompting.style.special_tokens)
        prepared = [self._prepare(model, sample, prompting, encode) for sample in samples]
        return _asked(prepared, samples, lambda *item: self._record(prompting, *item))

    def _record(
        self, prompting: Prompting, sample: Sample, item: _Ranked, results: Iterator[LoglikelihoodResult]
    ) -> Record:
        values = [finite(next(results), sample) for _ in item.labels]
        weights = [math.exp(value - max(values)) for value in values]
        chances = [weight / math.fsum(weights) for weight in weights]
        return {
            "in-context examples": item.ice,
            **item.notes,
            "testing input": item.prompt,
            "choices": item.texts,
            "prediction": chances,
            "pred_label": chances.index(max(chances)),
            "gold": _choice_of(prompting, sample, item.texts),
        }

    def texts(self, prompting: Prompting, sample: Sample) -> list[str]:
        column = prompting.reader.choices_column
        if self.choices is not None:
            return list(self.choices)
        if column is None:
            raise ValueError("CLPInferencer needs choices=[...], or reader_cfg with choices_column")
        return [str(choice) for choice in sample.row[column]]

    def _prepare(self, model: LanguageModel, sample: Sample, prompting: Prompting, encode: Encoder) -> _Ranked:
        texts = self.texts(prompting, sample)
        tokens = [self._token(encode, text, sample) for text in texts]

        def context(ice: Sequence[Turn]) -> tuple[int, ...]:
            return encode(prompting.prompt(sample.row, ice, blank=True, generate=True))

        ice, dropped = most_examples(sample, prompting, lambda ice: len(context(ice)) <= model.max_seq_len)
        ids = context(ice)
        item = _Ranked(
            list(range(len(texts))),
            texts,
            prompting.prompt(sample.row, ice, blank=True, generate=True),
            prompting.style.render(ice) if ice else "",
            [LoglikelihoodRequest(ids, (token,)) for token in tokens],
        )
        item.notes = truncation_notes(dropped, len(ids) - model.max_seq_len)
        return item

    def _token(self, encode: Encoder, text: str, sample: Sample) -> int:
        ids = encode(text, special=False)
        if len(ids) != 1:
            raise ValueError(f"{sample.row.where}: the choice {text!r} is {len(ids)} tokens, CLPInferencer needs one")
        return ids[0]


def _asked(
    prepared: Sequence[_Ranked],
    samples: Sequence[Sample],
    record: Callable[[Sample, _Ranked, Iterator[LoglikelihoodResult]], Record],
) -> Asked:
    """The requests of all samples, and ``record`` of each with what comes next among the answers."""

    def then(results: Sequence[LoglikelihoodResult]) -> list[Record]:
        answers = iter(results)
        return [record(sample, item, answers) for sample, item in zip(samples, prepared, strict=True)]

    return Asked([request for item in prepared for request in item.requests], then)


def _choice_of(prompting: Prompting, sample: Sample, texts: Sequence[str]) -> int:
    """The gold as the index of its choice; it may be that index already, or the choice's text."""
    assert prompting.reader.output_column is not None
    gold = sample.row[prompting.reader.output_column]
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(texts):
        return gold
    stripped = [text.strip() for text in texts]
    if str(gold).strip() in stripped:
        return stripped.index(str(gold).strip())
    raise ValueError(f"{sample.row.where}: the answer {gold!r} is none of the choices {', '.join(map(repr, texts))}")


def _overflow(requests: Sequence[LoglikelihoodRequest], model: LanguageModel) -> int:
    longest = max(len(request.context) + len(request.continuation) - 1 for request in requests)
    return longest - model.max_seq_len


def _split(prompt: str, sep: str | None, sample: Sample) -> tuple[str, str]:
    """Context and answer at ``sep``."""
    if not sep or sep not in prompt:
        raise ValueError(f"{sample.row.where}: normalizing_str needs a sep_token in every template")
    context, answer = prompt.split(sep, 1)
    return context, answer.replace(sep, "")
