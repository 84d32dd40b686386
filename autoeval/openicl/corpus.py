"""The inferencer without questions: how many bits a text costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from autoeval.models.requests import LanguageModel, LoglikelihoodRequest, LoglikelihoodResult
from autoeval.openicl.asking import Asked, Record
from autoeval.openicl.encoding import Encoder, finite
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.sample import Prompting, Sample


class PPLOnlyInferencer:
    """The log-likelihood of each row's prompt (``template``: the text alone), however long.

    A text longer than the window is read in windows that do not overlap in what they score, each with the token before
    it as context, the last one with as much context as fits (lm-evaluation-harness's rolling windows). The first token
    is conditioned on the tokenizer's prefix token. Records have the nats, tokens, words and UTF-8 bytes.
    """

    kind = "corpus"
    continuation: PromptTemplate | None = None

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        encode = Encoder(model, special=False)
        texts = [prompting.prompt(sample.row) for sample in samples]
        windows = [rolling_windows(encode(text), model.max_seq_len) for text in texts]
        for sample, item in zip(samples, windows, strict=True):
            if not item:
                raise ValueError(f"{sample.row.where}: the text is empty")

        def then(results: Sequence[LoglikelihoodResult]) -> list[Record]:
            answers = iter(results)
            return [_record(*item, answers) for item in zip(samples, texts, windows, strict=True)]

        return Asked([window for item in windows for window in item], then)


def _record(
    sample: Sample, text: str, windows: Sequence[LoglikelihoodRequest], results: Iterator[LoglikelihoodResult]
) -> Record:
    nats = -math.fsum(finite(next(results), sample) for _ in windows)
    tokens = sum(len(window.continuation) for window in windows)
    size = len(text.encode())
    return {
        "origin_prompt": text if size <= 1000 else text[:1000] + " …",
        "nats": nats,
        "tokens": tokens,
        "words": len(text.split()),
        "bytes": size,
        "prediction": nats / size / math.log(2),
        "PPL": nats / tokens,
        "BPB": nats / size / math.log(2),
    }


def rolling_windows(tokens: Sequence[int], window: int) -> list[LoglikelihoodRequest]:
    """Requests that score each of ``tokens`` once; an empty context stands for the prefix token."""
    requests = []
    for start in range(0, len(tokens), window):
        scored = tokens[start : start + window]
        context = tokens[max(0, start + len(scored) - window - 1) : start] if start else ()
        requests.append(LoglikelihoodRequest(tuple(context), tuple(scored)))
    return requests
