"""One test row made ready: its labels, its examples, and its prompts within the model's window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl.prompt_template import PromptTemplate, Turn
from autoeval.openicl.retrievers import Retriever
from autoeval.openicl.styles import PlainStyle, Style

ONLY_LABEL = "answer"


@dataclass(frozen=True)
class Reader:
    """What the columns mean (OpenCompass's ``reader_cfg``)."""

    output_column: str | None = None
    input_columns: tuple[str, ...] = ()
    choices_column: str | None = None
    labels_column: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_range: str | int | float | None = None  # which rows: slices ("[0:100]"), a number, or a share of them
    test_range: str | int | float | None = None


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
    retriever: Retriever
    prompt_template: PromptTemplate | None
    ice_template: PromptTemplate | None
    continuation: PromptTemplate | None = None  # what ``LLInferencer`` ranks
    style: Style = field(default_factory=PlainStyle)

    @property
    def template(self) -> PromptTemplate:
        """What makes the prompt: ``prompt_template``, or with none the examples' own."""
        chosen = self.prompt_template or self.ice_template
        if chosen is None:
            raise ValueError("infer_cfg has neither prompt_template nor ice_template")
        return chosen

    def labels(self, row: Row) -> list[Any]:
        """The labels that ``row`` is ranked over. Raises ``DatasetError`` when there are fewer than two.

        A single continuation without choices has one, ``ONLY_LABEL``: it is scored, not ranked.
        """
        if self.reader.choices_column is not None:
            choices = row[self.reader.choices_column]
            if not isinstance(choices, Sequence) or isinstance(choices, str):
                raise DatasetError(f"{row.where}: column {self.reader.choices_column!r} is not a list of choices")
            labels: list[Any] = list(range(len(choices)))
        else:
            templates = (self.template, self.continuation, self.ice_template)
            known = next((one.labels for one in templates if one is not None and one.labels), None)
            if known is None and self.continuation is not None:
                return [ONLY_LABEL]
            if known is None:
                raise ValueError("ranking needs one template per label, or reader_cfg with choices_column")
            labels = known
            if self.reader.labels_column is not None:
                have = {str(label) for label in row[self.reader.labels_column]}
                labels = [label for label in known if str(label) in have]
        if len(labels) < 2:
            raise DatasetError(f"{row.where}: {len(labels)} choices, expected at least two")
        return labels

    def golds(self, row: Row) -> list[str]:
        """The right labels as text; most rows have one. Raises ``DatasetError`` when one is none of the row's labels."""
        if self.reader.output_column is None:
            raise ValueError("ranking needs reader_cfg with output_column")
        gold, labels = row[self.reader.output_column], self.labels(row)
        if labels == [ONLY_LABEL]:
            return [ONLY_LABEL]
        golds = gold if isinstance(gold, list) and gold else [gold]
        for one in golds:
            if isinstance(one, bool) or str(one) not in {str(label) for label in labels}:
                column, listed = self.reader.output_column, ", ".join(map(str, labels))
                raise DatasetError(f"{row.where}: {column!r} is {gold!r}, which is none of {listed}")
        return [str(one) for one in golds]

    def gold(self, row: Row) -> str:
        """The right label as text, the first of several."""
        return self.golds(row)[0]

    def columns(self, row: Row, label: Any) -> Mapping[str, Any]:
        """The columns for a template, with ``choice`` where there is a list of them."""
        if self.reader.choices_column is None or label is None:
            return row.columns
        return {**row.columns, "choice": row[self.reader.choices_column][int(label)]}

    def ice(self, examples: Sequence[Row]) -> tuple[Turn, ...]:
        """All examples; those of a meta template need no separators of their own."""
        if not examples:
            return ()
        made = [self._example(example) for example in examples]
        if (self.ice_template or self.template).is_meta:
            return tuple(turn for turns in made for turn in turns)
        texts = ["".join(turn.text for turn in turns) for turns in made]
        return (Turn(self.retriever.ice_separator.join(texts) + self.retriever.ice_eos_token),)

    def _example(self, row: Row) -> list[Turn]:
        """A training row with its answer; where the template has none, the continuation is the answer."""
        chosen = self.ice_template or self.template
        ranked = chosen.by_label is not None or self.reader.choices_column is not None
        label = self.gold(row) if ranked else None
        turns = chosen.turns(self.columns(row, label), label=label)
        if self.continuation is None or self.ice_template is not None:
            return turns
        return [*turns, Turn(self.answer(row, self.gold(row)))]

    def answer(self, row: Row, label: Any) -> str:
        """The continuation of ``label``."""
        assert self.continuation is not None
        return "".join(turn.text for turn in self.continuation.turns(self.columns(row, label), label=label))

    def turns(
        self,
        row: Row,
        ice: Sequence[Turn] = (),
        *,
        label: Any = None,
        keep_sep: bool = False,
        blank: bool = False,
    ) -> list[Turn]:
        """The turns of ``row``; ``blank`` empties the output column, for generation."""
        columns = self.columns(row, label)
        if blank and self.reader.output_column is not None:
            columns = {**columns, self.reader.output_column: ""}
        return self.template.turns(columns, label=label, ice=ice, keep_sep=keep_sep)

    def prompt(
        self,
        row: Row,
        ice: Sequence[Turn] = (),
        *,
        label: Any = None,
        keep_sep: bool = False,
        blank: bool = False,
        generate: bool = False,
    ) -> str:
        """The prompt for ``row`` as the model reads it; ``generate``: the model is to go on from its end."""
        return self.style.render(self.turns(row, ice, label=label, keep_sep=keep_sep, blank=blank), generate=generate)


def most_examples(
    sample: Sample, prompting: Prompting, fits: Callable[[tuple[Turn, ...]], bool]
) -> tuple[tuple[Turn, ...], int]:
    """The longest run of examples, the last ones dropped first, whose prompts fit; none when even that does not.

    Returns the examples' turns and how many were dropped. All labels of a row get the same examples.
    """
    for count in range(len(sample.examples), 0, -1):
        ice = prompting.ice(sample.examples[:count])
        if fits(ice):
            return ice, len(sample.examples) - count
    return (), len(sample.examples)
