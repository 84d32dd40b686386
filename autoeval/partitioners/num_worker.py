"""As many tasks a model as there are workers, so that each loads the model once: dealt out by turns, or by cost."""

from __future__ import annotations

import math
from typing import Any, Literal

from autoeval.partitioners.balanced import balanced
from autoeval.partitioners.base import Count, Dataset, Done, Measured, Partitioner, part
from autoeval.partitioners.size import SizePartitioner


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

    def chunks(
        self, model: dict[str, Any], datasets: list[Dataset], done: Done, count: Count, measured: Measured
    ) -> list[list[Dataset]]:
        parts = [piece for dataset in datasets for piece in self._split(dataset, count)]
        parts = [piece for piece in parts if not done(model, piece)]
        if self.strategy == "split":
            return [[piece] for piece in parts]
        return self._dealt(model, parts, count, measured)

    def _dealt(
        self, model: dict[str, Any], parts: list[Dataset], count: Count, measured: Measured
    ) -> list[list[Dataset]]:
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


class BalancedPartitioner(NumWorkerPartitioner):
    """The same parts, which do not depend on each other, so that ``-r`` finds them again. They are dealt out by what earlier
    runs took, so that all tasks end at about the same time, to no more tasks than it is worth to load the model for.

    What was never run is taken for as much as its size says (an item that is generated costs ``gen_task_coef``).
    """

    def __init__(self, num_worker: int = 8, gen_task_coef: int = 20, **options: Any) -> None:
        super().__init__(num_worker, **options)
        self._sizes = SizePartitioner(gen_task_coef=gen_task_coef)

    def _dealt(
        self, model: dict[str, Any], parts: list[Dataset], count: Count, measured: Measured
    ) -> list[list[Dataset]]:
        if self.num_worker == 1 or len(parts) < 2:
            return [parts] if parts else []
        spent = {index: found for index, piece in enumerate(parts) if (found := measured(model, piece)) is not None}
        dealt = balanced(
            range(len(parts)),
            {index: one.item_seconds * count(parts[index]) for index, one in spent.items()},
            self.num_worker,
            load_seconds=max((one.load_seconds for one in spent.values()), default=0.0),
            sizes={index: float(self._sizes.cost(piece, count)) for index, piece in enumerate(parts)},
        )
        return [[parts[index] for index in bucket] for bucket in dealt]
