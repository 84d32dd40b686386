"""So many datasets a task, in their order."""

from __future__ import annotations

from typing import Any

from autoeval.partitioners.base import Count, Dataset, Done, Measured, Partitioner


class NaivePartitioner(Partitioner):
    """Chunks of ``n`` datasets for each model."""

    def __init__(self, n: int = 1, out_dir: str | None = None) -> None:
        super().__init__(out_dir)
        if n < 1:
            raise ValueError(f"NaivePartitioner: n is {n}, expected at least 1")
        self.n = n

    def chunks(
        self, model: dict[str, Any], datasets: list[Dataset], done: Done, count: Count, measured: Measured
    ) -> list[list[Dataset]]:
        return [datasets[start : start + self.n] for start in range(0, len(datasets), self.n)]
