"""Retrievers that compare embeddings of the input columns (sentence-transformers).

``sentence_transformers_model_name`` is a directory; nothing is downloaded. Similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl.retrievers import Numbered, enough, input_text

_EMBEDDER = "all-mpnet-base-v2"


class TopkRetriever:
    """The ``ice_num`` nearest training rows, nearest first."""

    def __init__(
        self,
        ice_num: int = 1,
        ice_separator: str = "\n",
        ice_eos_token: str = "\n",
        sentence_transformers_model_name: str = _EMBEDDER,
        batch_size: int = 32,
    ) -> None:
        self.ice_num = ice_num
        self.ice_separator, self.ice_eos_token = ice_separator, ice_eos_token
        self.embedder = sentence_transformers_model_name
        self.batch_size = batch_size

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        enough(train, self.ice_num)
        queries, index = self.embed([row for _, row in tests], context), self.embed(train, context)
        return [[train[place] for place in nearest(query, index, self.ice_num)] for query in queries]

    def embed(self, rows: Sequence[Row], context: Any) -> Any:
        """Unit vectors of the rows' input columns, [rows, dimensions]."""
        from sentence_transformers import SentenceTransformer

        if not Path(self.embedder).is_dir():
            raise DatasetError(
                f"{type(self).__name__}: sentence_transformers_model_name is '{self.embedder}', expected a directory"
                " with a sentence-transformers model (nothing is downloaded)"
            )
        model = SentenceTransformer(self.embedder, device="cpu", local_files_only=True, trust_remote_code=False)
        texts = [input_text(row, context) for row in rows]
        return model.encode(texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False)


class VotekRetriever(TopkRetriever):
    """The same examples for all: rows that are near to many others and not to the same ones (vote-k, arXiv 2209.01975).

    Each training row has a vote for each of its ``votek_k`` nearest. The row with most votes is taken, again and again;
    the votes of a row count a tenth for each of its nearest that is taken already.
    """

    def __init__(self, *args: Any, votek_k: int = 3, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.votek_k = votek_k

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        enough(train, self.ice_num)
        index = self.embed(train, context)
        voters: dict[int, list[int]] = {place: [] for place in range(len(train))}
        for voter, vector in enumerate(index):
            for place in [one for one in nearest(vector, index, self.votek_k + 1) if one != voter][: self.votek_k]:
                voters[place].append(voter)
        weights = [1.0] * len(train)
        chosen: list[int] = []
        while len(chosen) < self.ice_num:
            left = (place for place in range(len(train)) if place not in chosen)
            chosen.append(max(left, key=lambda place: sum(weights[voter] for voter in voters[place])))
            for voter in voters[chosen[-1]]:
                weights[voter] /= 10
        return [[train[place] for place in chosen] for _ in tests]


class DPPRetriever(TopkRetriever):
    """Of the ``candidate_num`` nearest, ``ice_num`` that are relevant and unlike each other (arXiv 2302.05698).

    Greedy MAP of a determinantal point process with kernel r_i s_ij r_j, where s = (1 + cosine) / 2 and r is the
    relevance exp((s - max s) / (2 scale_factor)); ordered by relevance.
    """

    def __init__(
        self, *args: Any, candidate_num: int = 1, seed: int = 1, scale_factor: float = 0.1, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        del seed  # nothing is drawn; OpenCompass's configurations give one
        self.candidate_num, self.scale_factor = max(candidate_num, self.ice_num), scale_factor

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        import numpy

        enough(train, self.ice_num)
        queries, index = self.embed([row for _, row in tests], context), self.embed(train, context)
        found = []
        for query in queries:
            near = nearest(query, index, self.candidate_num)
            vectors = index[near].astype(float)
            relevance = (vectors @ query + 1) / 2
            relevance = numpy.exp((relevance - relevance.max()) / (2 * self.scale_factor))
            kernel = relevance[:, None] * (vectors @ vectors.T + 1) / 2 * relevance
            chosen = sorted(greedy_map(kernel, self.ice_num), key=lambda place: -relevance[place])
            found.append([train[near[place]] for place in chosen])
        return found


class MDLRetriever(TopkRetriever):
    """The examples that make a model surest of some label (minimum description length, arXiv 2212.10375).

    ``select_time`` selections: the ``ice_num`` nearest, then random ones of the ``candidate_num`` nearest; that one is
    taken whose softmax over labels of minus the mean cross entropy (of what follows the examples) has the least
    entropy, under the model in the directory ``ce_model_name``. Each test row draws from its own ``seed``.
    """

    def __init__(
        self,
        *args: Any,
        candidate_num: int = 1,
        ce_model_name: str = "gpt2-xl",
        select_time: int = 5,
        seed: int = 1,
        ice_template: Any = None,
        **keywords: Any,
    ) -> None:
        del ice_template  # OpenCompass has it here a second time; that of infer_cfg counts
        super().__init__(*args, **keywords)
        self.candidate_num = max(candidate_num, self.ice_num)
        self.ce_model_name, self.select_time, self.seed = ce_model_name, select_time, seed

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        import numpy

        from autoeval.models.hf import HuggingFaceModel

        enough(train, self.ice_num)
        queries, index = self.embed([row for _, row in tests], context), self.embed(train, context)
        model = HuggingFaceModel(self.ce_model_name)
        found = []
        for (number, row), query in zip(tests, queries, strict=True):
            near = nearest(query, index, self.candidate_num)
            draw = numpy.random.RandomState((self.seed, number))
            selections = [near[: self.ice_num]]
            for _ in range(self.select_time - 1):
                selections.append([int(one) for one in draw.choice(near, self.ice_num, replace=False)])
            examples = [[train[place] for place in selection] for selection in selections]
            entropies = [label_entropy(model, row, chosen, context) for chosen in examples]
            found.append(examples[int(numpy.argmin(entropies))])
        model.unload()
        return found


def nearest(query: Any, index: Any, count: int) -> list[int]:
    """Places in ``index`` of the ``count`` largest scalar products with ``query``; the first of equals first."""
    import numpy

    return [int(place) for place in numpy.argsort(-(index @ query), kind="stable")[:count]]


def greedy_map(kernel: Any, count: int) -> list[int]:
    """At most ``count`` items that greedily maximise the determinant (arXiv 1709.05135, by Cholesky updates)."""
    import numpy

    gains = numpy.diag(kernel).copy()
    factors = numpy.zeros((count, len(kernel)))
    chosen = [int(gains.argmax())]
    for step in range(count - 1):
        last = chosen[-1]
        factors[step] = (kernel[last] - factors[:step, last] @ factors[:step]) / numpy.sqrt(max(gains[last], 1e-12))
        gains -= factors[step] ** 2
        gains[chosen] = -numpy.inf
        chosen.append(int(gains.argmax()))
    return chosen


def label_entropy(model: Any, row: Row, examples: Sequence[Row], context: Any) -> float:
    """Entropy over labels of softmax(- mean cross entropy of the tokens after the examples), in nats."""
    import numpy

    from autoeval.models.requests import LoglikelihoodRequest

    ice = context.ice(examples)
    head = len(model.tokenizer("".join(turn.text for turn in ice))["input_ids"])
    requests = []
    for label in context.labels(row):
        ids = model.tokenizer(context.prompt(row, ice, label=label))["input_ids"][-model.max_seq_len :]
        start = max(1, min(head, len(ids) - 1))
        requests.append(LoglikelihoodRequest(tuple(ids[:start]), tuple(ids[start:])))
    means = numpy.array([r.logprob / len(r.token_logprobs) for r in model.loglikelihoods(requests)])
    chances = numpy.exp(means - means.max())
    chances /= chances.sum()
    return float(-(chances * numpy.log(chances)).sum())
