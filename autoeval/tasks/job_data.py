"""A dataset as a job's configuration has it: the rows of ``test_range``, and where its file was.

In a job a dataset is the configuration's plain dictionary with two keys more: ``config_file`` (paths are looked up
beside it) and, for a part, ``test_range``: slices like ``"[0:100]"`` of the items that ``reader_cfg`` and ``--limit``
leave.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoeval.datasets.loaders import load_splits, test_rows
from autoeval.datasets.rows import Source, in_range, sliced
from autoeval.tasks.configs import DatasetConfig, loader_options
from autoeval.tasks.icl import IclTask, load_icl_task

_OWN_KEYS = ("config_file", "test_range")


def load_task(dataset: Mapping[str, Any], job: Mapping[str, Any]) -> IclTask:
    """The task with the samples of its ``test_range``. Raises ``ValueError`` naming the file and what is wrong."""
    options = {key: value for key, value in dataset.items() if key not in _OWN_KEYS}
    config = DatasetConfig(Path(dataset["config_file"]), options)
    task = load_icl_task(config, data_dir=Path(job["data_dir"]), limit=job.get("limit"))
    return cut(task, dataset.get("test_range"), str(config.file))


def cut(task: IclTask, test_range: str | None, file: str) -> IclTask:
    """The task with the samples of ``test_range`` alone. Raises ``ValueError`` when it leaves none."""
    if not test_range:
        return task
    samples = tuple(sliced(task.samples, test_range))
    if not samples:
        raise ValueError(f"{file}: '{task.name}': test_range {test_range!r} leaves no items of {len(task.samples)}")
    version = hashlib.sha256(f"{task.version}{test_range}".encode()).hexdigest()[:12]
    return dataclasses.replace(task, samples=samples, version=version)


def count_items(dataset: Mapping[str, Any], job: Mapping[str, Any]) -> int:
    """How many items ``load_task`` would give, without making prompts."""
    source = Source(Path(job["data_dir"]), Path(dataset["config_file"]))
    options = {key: value for key, value in dataset.items() if key not in _OWN_KEYS}
    splits = load_splits(dataset["type"], source, loader_options(options))
    try:
        rows = test_rows(splits, dataset["reader_cfg"].get("test_split", "test"))
    except ValueError as error:
        raise ValueError(f"{dataset['config_file']}: dataset '{dataset['abbr']}': {error}") from error
    there, limit = len(in_range(rows, dataset["reader_cfg"].get("test_range"))), job.get("limit")
    return len(sliced(range(min(there, limit) if limit else there), dataset.get("test_range", "")))
