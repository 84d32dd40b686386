"""What things are called in an output directory: OpenCompass's abbreviations, file names and task names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.names import class_name
from autoeval.tasks.plan import file_name

Config = Mapping[str, Any]


def model_abbr(model: Config) -> str:
    """``abbr``, or the type with the last two parts of the path (OpenCompass's rule)."""
    if model.get("abbr"):
        return file_name(str(model["abbr"]))
    parts = str(model.get("path", "")).rstrip("/").replace("://", "/").split("/")[-2:]
    return file_name("_".join([class_name(model.get("type", "model")), *filter(None, parts)]))


def dataset_abbr(dataset: Config) -> str:
    """``abbr``, or the path with the name."""
    if dataset.get("abbr"):
        return file_name(str(dataset["abbr"]))
    name = f"_{dataset['name']}" if dataset.get("name") else ""
    return file_name(str(dataset.get("path", "dataset")) + name)


def output_path(directory: Path | str, model: Config, dataset: Config) -> Path:
    """The file for one dataset (or shard) of one model below ``predictions`` or ``results``."""
    return Path(directory, model_abbr(model), f"{dataset_abbr(dataset)}.json")


def pairs(task: Config) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every (model, dataset) of a task's configuration; ``datasets`` has one list for each model."""
    for model, datasets in zip(task["models"], task["datasets"], strict=True):
        for dataset in datasets:
            yield model, dataset


def task_name(prefix: str, task: Config) -> str:
    """``OpenICLInfer[model/dataset,model/dataset]``."""
    listed = ",".join(f"{model_abbr(model)}/{dataset_abbr(dataset)}" for model, dataset in pairs(task))
    return f"{prefix}[{listed}]"


def refuse_double(kind: str, abbrs: Sequence[str]) -> None:
    """Two of one name would write one file. Raises ``ValueError`` naming it."""
    seen: set[str] = set()
    for abbr in abbrs:
        if abbr in seen:
            raise ValueError(f"two {kind}s are called '{abbr}': give each an abbr of its own")
        seen.add(abbr)
