"""Which training rows stand as examples before a test row. OpenICL's class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoeval.datasets.names import look_up
from autoeval.datasets.rows import DatasetError, Row


class ZeroRetriever:
    """No examples."""

    ice_separator = ""
    ice_eos_token = ""

    def retrieve(self, row: Row, train: Sequence[Row]) -> list[Row]:
        return []


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
        self._groups: tuple[Sequence[Row], dict[Any, list[Row]]] | None = None

    def retrieve(self, row: Row, train: Sequence[Row]) -> list[Row]:
        """Raises ``DatasetError`` when the list names a training row that is not there."""
        pool = self._pool(row, train)
        for index in self.fix_id_list:
            if not 0 <= index < len(pool):
                raise DatasetError(f"{row.where}: fix_id_list has {index}, but there are {len(pool)} training rows")
        return [pool[index] for index in self.fix_id_list]

    def _pool(self, row: Row, train: Sequence[Row]) -> Sequence[Row]:
        if self.group_column is None:
            return train
        if self._groups is None or self._groups[0] is not train:
            groups: dict[Any, list[Row]] = {}
            for example in train:
                groups.setdefault(example[self.group_column], []).append(example)
            self._groups = (train, groups)
        return self._groups[1].get(row[self.group_column], [])


RETRIEVERS: dict[str, type] = {"ZeroRetriever": ZeroRetriever, "FixKRetriever": FixKRetriever}


def build_retriever(options: Mapping[str, Any]) -> ZeroRetriever | FixKRetriever:
    """From ``dict(type="FixKRetriever", fix_id_list=[0, 1])``."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(RETRIEVERS, options.get("type", "ZeroRetriever"), "retriever")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"retriever {chosen.__name__}: {error}") from error
