"""Which training rows stand as examples before a test row. OpenICL's class names.

A retriever answers for many test rows at once, each with its index in the test split: what it gives one does not depend
on which others are asked for, so that a shard or a limit has the same examples as the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autoeval.datasets.names import look_up
from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl.prompt_template import PromptTemplate

Numbered = tuple[int, Row]  # index in the split, and the row


class Context(Protocol):
    """What a retriever may look at besides the rows: ``autoeval.openicl.sample.Prompting``."""

    @property
    def reader(self) -> Any: ...

    @property
    def template(self) -> PromptTemplate: ...


class Retriever(Protocol):
    """``ice_separator`` stands between examples, ``ice_eos_token`` after the last."""

    ice_separator: str
    ice_eos_token: str

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        """The examples of each of ``tests``. Raises ``DatasetError`` when there are too few training rows."""
        ...


class ZeroRetriever:
    """No examples."""

    def __init__(self, ice_separator: str = "", ice_eos_token: str = "") -> None:
        # Configurations may give them; without examples there is nothing to separate.
        self.ice_separator = self.ice_eos_token = ""

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        return [[] for _ in tests]


class FixKRetriever:
    """The same training rows for every test row: those at ``fix_id_list``.

    With ``group_column`` the list counts within the training rows of the test row's group (MMLU: its subject).
    """

    def __init__(
        self,
        fix_id_list: Sequence[int],
        ice_separator: str = "\n",
        ice_eos_token: str = "\n",
        group_column: str | None = None,
    ) -> None:
        self.fix_id_list = tuple(fix_id_list)
        self.ice_separator = ice_separator
        self.ice_eos_token = ice_eos_token
        self.group_column = group_column

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        column = self.group_column
        if column is None:
            return [self._examples(row, train) for _, row in tests]
        groups: dict[Any, list[Row]] = {}
        for example in train:
            groups.setdefault(example[column], []).append(example)
        return [self._examples(row, groups.get(row[column], [])) for _, row in tests]

    def _examples(self, row: Row, pool: Sequence[Row]) -> list[Row]:
        for index in self.fix_id_list:
            if not 0 <= index < len(pool):
                raise DatasetError(f"{row.where}: fix_id_list has {index}, but there are {len(pool)} training rows")
        return [pool[index] for index in self.fix_id_list]


class RandomRetriever:
    """``ice_num`` training rows drawn without replacement, anew for every test row (numpy's legacy generator, as OpenICL)."""

    def __init__(self, ice_num: int = 1, seed: int = 43, ice_separator: str = "\n", ice_eos_token: str = "\n") -> None:
        self.ice_num, self.seed = ice_num, seed
        self.ice_separator, self.ice_eos_token = ice_separator, ice_eos_token

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        import numpy

        enough(train, self.ice_num)
        draw = numpy.random.RandomState(self.seed)
        drawn = [draw.choice(len(train), self.ice_num, replace=False) for _ in range(1 + max(i for i, _ in tests))]
        return [[train[int(place)] for place in drawn[index]] for index, _ in tests]


class SlidingWindowRetriever:
    """The ``k`` training rows before the test row's own index; from the end of the training rows at the beginning."""

    def __init__(self, k: int = 1, ice_separator: str = "\n", ice_eos_token: str = "\n") -> None:
        self.k = k
        self.ice_separator, self.ice_eos_token = ice_separator, ice_eos_token

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        enough(train, self.k)
        return [[train[place % len(train)] for place in range(index - self.k, index)] for index, _ in tests]


class BM25Retriever:
    """The ``ice_num`` training rows with the highest BM25 (Okapi) for the test row's input columns, best first."""

    def __init__(self, ice_num: int = 1, ice_separator: str = "\n", ice_eos_token: str = "\n") -> None:
        self.ice_num = ice_num
        self.ice_separator, self.ice_eos_token = ice_separator, ice_eos_token

    def retrieve(self, tests: Sequence[Numbered], train: Sequence[Row], context: Any) -> list[list[Row]]:
        import numpy
        from nltk.tokenize import NLTKWordTokenizer
        from rank_bm25 import BM25Okapi

        enough(train, self.ice_num)
        words = NLTKWordTokenizer().tokenize  # what word_tokenize does, without the sentence model it downloads
        index = BM25Okapi([words(input_text(row, context)) for row in train])
        found = []
        for _, row in tests:
            scores = numpy.asarray(index.get_scores(words(input_text(row, context))))
            best = numpy.argsort(-scores, kind="stable")[: self.ice_num]  # the first of equals
            found.append([train[int(place)] for place in best])
        return found


def input_text(row: Row, context: Context) -> str:
    """The input columns, a space between them."""
    return " ".join(str(row[column]) for column in context.reader.input_columns)


def enough(train: Sequence[Row], wanted: int) -> None:
    if not 0 < wanted <= len(train):
        raise DatasetError(f"{wanted} in-context examples are asked for, but there are {len(train)} training rows")


def build_retriever(options: Mapping[str, Any]) -> Retriever:
    """From ``dict(type="FixKRetriever", fix_id_list=[0, 1])``."""
    from autoeval.openicl.dense_retrievers import DPPRetriever, MDLRetriever, TopkRetriever, VotekRetriever

    known: dict[str, type] = {
        one.__name__: one
        for one in (
            ZeroRetriever,
            FixKRetriever,
            RandomRetriever,
            SlidingWindowRetriever,
            BM25Retriever,
            TopkRetriever,
            VotekRetriever,
            DPPRetriever,
            MDLRetriever,
        )
    }
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(known, options.get("type", "ZeroRetriever"), "retriever")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"retriever {chosen.__name__}: {error}") from error
