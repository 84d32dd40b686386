"""Partitioners: models times datasets to tasks. OpenCompass's names and rules (0.1.9 and HEAD).

A task is a plain dictionary: ``models`` with one model, ``datasets`` with one list of datasets (a part of one has
``_<i>`` at the end of its ``abbr`` and its rows as ``test_range``), ``work_dir`` and what the stage was given besides.
A dataset (or part) whose output is there already is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoeval.datasets.names import look_up
from autoeval.partitioners.base import Partitioner
from autoeval.partitioners.naive import NaivePartitioner
from autoeval.partitioners.num_worker import BalancedPartitioner, NumWorkerPartitioner
from autoeval.partitioners.size import SizePartitioner

PARTITIONERS: dict[str, type[Partitioner]] = {
    "NaivePartitioner": NaivePartitioner,
    "SizePartitioner": SizePartitioner,
    "NumWorkerPartitioner": NumWorkerPartitioner,
    "BalancedPartitioner": BalancedPartitioner,  # ours
}


def build_partitioner(options: Mapping[str, Any]) -> Partitioner:
    """From ``dict(type="SizePartitioner", max_task_size=2000)``. Raises ``ValueError`` for what it does not know."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(PARTITIONERS, options.get("type", ""), "partitioner")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"partitioner {chosen.__name__}: {error}") from error
