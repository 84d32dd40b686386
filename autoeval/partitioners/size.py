"""Tasks of about one size: large datasets split, small ones put together."""

from __future__ import annotations

import math
from fnmatch import fnmatch
from typing import Any, Literal

from autoeval.partitioners.base import Count, Dataset, Done, Measured, Partitioner, part

# Datasets whose answers are reasoned out at length cost ten times as much (OpenCompass's list).
LONG_ANSWERS = (
    "bbh*",
    "gsm8k*",
    "math*",
    "strategyqa*",
    "agieval-jec*",
    "agieval-gaokao-mathcloze",
    "agieval-math",
    "*professional_law",
)
# Where every row has its own list of choices, their number is not in the configuration.
USUAL_CHOICES = 4
_META_KEYS = {"begin", "round", "end"}


class SizePartitioner(Partitioner):
    """No task costs more than ``max_task_size``; an item costs ``gen_task_coef``, or one for each ranked label.

    ``strategy``: ``heuristic`` puts what is small together, ``split`` makes one task of each. ``dataset_size_path`` is
    accepted and not needed: items are counted, so an edited file never has a stale size.
    """

    def __init__(
        self,
        max_task_size: int = 40000,
        gen_task_coef: int = 20,
        strategy: Literal["heuristic", "split"] = "heuristic",
        dataset_size_path: str | None = None,
        out_dir: str | None = None,
    ) -> None:
        super().__init__(out_dir)
        del dataset_size_path
        for name, value in (("max_task_size", max_task_size), ("gen_task_coef", gen_task_coef)):
            if value < 1:
                raise ValueError(f"SizePartitioner: {name} is {value}, expected at least 1")
        if strategy not in ("heuristic", "split"):
            raise ValueError(f"SizePartitioner: strategy is {strategy!r}, expected heuristic or split")
        self.max_task_size, self.gen_task_coef, self.strategy = max_task_size, gen_task_coef, strategy

    def chunks(
        self, model: dict[str, Any], datasets: list[Dataset], done: Done, count: Count, measured: Measured
    ) -> list[list[Dataset]]:
        weighed = sorted(((self.cost(one, count), one) for one in datasets), key=lambda pair: pair[0], reverse=True)
        pieces: list[tuple[int, Dataset]] = []
        for cost, dataset in weighed:
            if cost <= self.max_task_size:
                pieces.append((cost, dataset))
                continue
            for piece in self._split(dataset, count):
                if not done(model, piece):
                    pieces.append((self.max_task_size, piece))
        if self.strategy == "split":
            return [[piece] for _, piece in pieces]
        return self._packed(sorted(pieces, key=lambda pair: pair[0], reverse=True))

    def cost(self, dataset: Dataset, count: Count) -> int:
        """Items times what one costs."""
        return self.factor(dataset) * count(dataset)

    def factor(self, dataset: Dataset) -> int:
        """What one item costs."""
        infer_cfg = dataset["infer_cfg"]
        template = (infer_cfg.get("prompt_template") or infer_cfg.get("ice_template") or {}).get("template")
        if isinstance(template, dict) and not set(template) <= _META_KEYS:
            factor = len(template)
        elif dataset["reader_cfg"].get("choices_column"):
            factor = USUAL_CHOICES
        else:
            factor = self.gen_task_coef
        long = any(fnmatch(str(dataset["abbr"]), pattern) for pattern in LONG_ANSWERS)
        return factor * 10 if long else factor

    def _split(self, dataset: Dataset, count: Count) -> list[Dataset]:
        items = count(dataset)
        # At least one item a part: OpenCompass divided by zero when a single item was above the limit.
        largest = max(1, self.max_task_size // self.factor(dataset))
        step = math.ceil(items / math.ceil(items / largest))
        return [part(dataset, i, start, start + step) for i, start in enumerate(range(0, items, step))]

    def _packed(self, pieces: list[tuple[int, Dataset]]) -> list[list[Dataset]]:
        """Next fit: a task is closed when the next piece would not fit."""
        tasks: list[list[Dataset]] = []
        size = 0
        for cost, piece in pieces:
            if not tasks or size + cost > self.max_task_size:
                tasks.append([])
                size = 0
            tasks[-1].append(piece)
            size += cost
        return tasks
