"""What all partitioners share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Dataset = dict[str, Any]
Count = Callable[[Dataset], int]  # how many items a dataset has
Done = Callable[[Mapping[str, Any], Dataset], bool]  # whether a model's output for it is there, whole


@dataclass(frozen=True)
class Spent:
    """What earlier runs took: seconds of an item, and of loading the model."""

    item_seconds: float
    load_seconds: float


Measured = Callable[
    [Mapping[str, Any], Dataset], Spent | None
]  # of a model and a dataset (or part), if it ever was run


class Partitioner(ABC):
    """``partition`` gives the tasks that are left to do."""

    def __init__(self, out_dir: str | None = None) -> None:
        # OpenCompass's configurations may name it; here the stage decides where its outputs are.
        del out_dir

    def partition(
        self,
        models: Sequence[Mapping[str, Any]],
        datasets: Sequence[Dataset],
        *,
        done: Done,
        count: Count,
        keep: Mapping[str, Any],
        measured: Measured = lambda _model, _dataset: None,
    ) -> list[dict[str, Any]]:
        """Tasks for every model; ``keep`` goes into each. ``count`` and ``measured`` are asked only where a rule needs
        them."""
        tasks = []
        for model in models:
            waiting = [dataset for dataset in datasets if not done(model, dataset)]
            for chunk in self.chunks(dict(model), waiting, done, count, measured):
                tasks.append({"models": [dict(model)], "datasets": [chunk], **keep})
        return tasks

    @abstractmethod
    def chunks(
        self, model: dict[str, Any], datasets: list[Dataset], done: Done, count: Count, measured: Measured
    ) -> list[list[Dataset]]:
        """Lists of datasets that one task evaluates."""


def part(dataset: Dataset, index: int, start: int, stop: int) -> Dataset:
    """Rows ``start:stop`` of what ``dataset`` had, called ``<abbr>_<index>``."""
    return {
        **dataset,
        "abbr": f"{dataset['abbr']}_{index}",
        "test_range": f"{dataset.get('test_range', '')}[{start}:{stop}]",
    }
