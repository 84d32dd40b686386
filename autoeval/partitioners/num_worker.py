"""As many tasks a model as there are workers, so that each loads the model once."""

from __future__ import annotations

import math
from typing import Any, Literal

from autoeval.partitioners.base import Count, Dataset, Done, Partitioner, part


class NumWorkerPartitioner(Partitioner):
    """Every dataset in ``num_split`` parts of at least ``min_task_size`` items, dealt out to ``num_worker`` tasks."""

    def __init__(
        self,
        num_worker: int = 8,
        num_split: int | None = None,
        min_task_size: int = 16,
        strategy: Literal["heuristic", "split"] = "heuristic",
        out_dir: str | None = None,
    ) -> None:
        super().__init__(out_dir)
        self.num_worker = num_worker
        self.num_split = num_worker if num_split is None else num_split
        self.min_task_size = min_task_size
        for name, value in (
            ("num_worker", num_worker),
            ("num_split", self.num_split),
            ("min_task_size", min_task_size),
        ):
            if value < 1:
                raise ValueError(f"NumWorkerPartitioner: {name} is {value}, expected at least 1")
        if strategy not in ("heuristic", "split"):
            raise ValueError(f"NumWorkerPartitioner: strategy is {strategy!r}, expected heuristic or split")
        self.strategy = strategy

    def chunks(self, model: dict[str, Any], datasets: list[Dataset], done: Done, count: Count) -> list[list[Dataset]]:
        parts = [piece for dataset in datasets for piece in self._split(dataset, count)]
        parts = [piece for piece in parts if not done(model, piece)]
        if self.strategy == "split":
            return [[piece] for piece in parts]
        buckets: list[list[Dataset]] = [[] for _ in range(self.num_worker)]
        for index, piece in enumerate(parts):
            buckets[index % self.num_worker].append(piece)
        return [bucket for bucket in buckets if bucket]

    def _split(self, dataset: Dataset, count: Count) -> list[Dataset]:
        if self.num_split == 1:
            return [dataset]
        items = count(dataset)
        step = max(math.ceil(items / self.num_split), self.min_task_size)
        starts = range(0, items, step)
        if len(starts) <= 1:
            return [dataset]
        return [part(dataset, index, start, start + step) for index, start in enumerate(starts)]
