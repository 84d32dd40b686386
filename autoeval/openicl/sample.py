"""One test row made ready: its labels, its examples, and its prompts within the model's window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.retrievers import FixKRetriever, ZeroRetriever


@dataclass(frozen=True)
class Reader:
    """What the columns mean (OpenCompass's ``reader_cfg``)."""

    output_column: str
    input_columns: tuple[str, ...] = ()
    choices_column: str | None = None
    labels_column: str | None = None
    train_split: str = "train"
    test_split: str = "test"


@dataclass(frozen=True)
class Sample:
    """A test row with its examples. ``key`` is the same for every checkpoint."""

    key: str
    row: Row
    examples: tuple[Row, ...]


@dataclass(frozen=True)
class Prompting:
    """How rows become prompts."""

    reader: Reader
    retriever: ZeroRetriever | FixKRetriever
    prompt_template: PromptTemplate | None
    ice_template: PromptTemplate | None
    continuation: PromptTemplate | None = None  # what ``LLInferencer`` ranks

    @property
    def template(self) -> PromptTemplate:
        """What makes the prompt: ``prompt_template``, or with none the examples' own."""
        chosen = self.prompt_template or self.ice_template
        if chosen is None:
            raise ValueError("infer_cfg has neither prompt_template nor ice_template")
        return chosen

    def labels(self, row: Row) -> list[Any]:
        """The labels that ``row`` is ranked over. Raises ``DatasetError`` when there are fewer than two."""
        if self.reader.choices_column is not None:
            choices = row[self.reader.choices_column]
            if not isinstance(choices, Sequence) or isinstance(choices, str):
                raise DatasetError(f"{row.where}: column {self.reader.choices_column!r} is not a list of choices")
            labels: list[Any] = list(range(len(choices)))
        else:
            templates = (self.template, self.continuation, self.ice_template)
            known = next((one.labels for one in templates if one is not None and one.labels), None)
            if known is None:
                raise ValueError("ranking needs one template per label, or reader_cfg with choices_column")
            labels = known
            if self.reader.labels_column is not None:
                have = {str(label) for label in row[self.reader.labels_column]}
                labels = [label for label in known if str(label) in have]
        if len(labels) < 2:
            raise DatasetError(f"{row.where}: {len(labels)} choices, expected at least two")
        return labels

    def gold(self, row: Row) -> str:
        """The right label as text. Raises ``DatasetError`` when it is none of the row's labels."""
        gold, labels = row[self.reader.output_column], self.labels(row)
        if isinstance(gold, bool) or str(gold) not in {str(label) for label in labels}:
            column = self.reader.output_column
            raise DatasetError(f"{row.where}: {column!r} is {gold!r}, which is none of {', '.join(map(str, labels))}")
        return str(gold)

    def columns(self, row: Row, label: Any) -> Mapping[str, Any]:
        """The columns for a template, with ``choice`` where there is a list of them."""
        if self.reader.choices_column is None or label is None:
            return row.columns
        return {**row.columns, "choice": row[self.reader.choices_column][int(label)]}

    def example_text(self, row: Row, answer: Callable[[Row], str] | None = None) -> str:
        """A training row with its answer; ``answer`` makes the answer when the template does not."""
        chosen = self.ice_template or self.template
        ranked = chosen.by_label is not None or self.reader.choices_column is not None
        label = self.gold(row) if ranked else None
        text = chosen.format_example(self.columns(row, label), label=label)
        return text if answer is None or self.ice_template is not None else text + answer(row)

    def ice(self, examples: Sequence[Row], answer: Callable[[Row], str] | None = None) -> str:
        """All examples as one text; a meta template needs no separators of its own beyond the line break."""
        if not examples:
            return ""
        texts = [self.example_text(example, answer) for example in examples]
        if (self.ice_template or self.template).is_meta:
            return "\n".join(texts)
        return self.retriever.ice_separator.join(texts) + self.retriever.ice_eos_token

    def prompt(self, row: Row, ice: str, *, label: Any = None, keep_sep: bool = False, blank: bool = False) -> str:
        """The prompt for ``row``; ``blank`` empties the output column, for generation."""
        columns = self.columns(row, label)
        if blank:
            columns = {**columns, self.reader.output_column: ""}
        return self.template.format(columns, label=label, ice=ice, keep_sep=keep_sep)


def most_examples(
    sample: Sample, fits: Callable[[str], bool], ice_of: Callable[[Sequence[Row]], str]
) -> tuple[str, int]:
    """The longest run of examples, the last ones dropped first, whose prompts fit; none when even that does not.

    Returns the examples' text and how many were dropped. All labels of a row get the same examples.
    """
    for count in range(len(sample.examples), 0, -1):
        ice = ice_of(sample.examples[:count])
        if fits(ice):
            return ice, len(sample.examples) - count
    return "", len(sample.examples)
