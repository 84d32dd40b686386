"""Dataset configurations: found by name, read with mmengine, checked.

``autoeval.datasets`` says what a configuration holds.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.openicl.sample import Reader
from autoeval.tasks.config_files import read_python
from autoeval.tasks.short_form import expanded, is_short

REPOSITORY = Path(__file__).resolve().parents[2]
_REQUIRED = ("abbr", "type", "path", "reader_cfg", "infer_cfg", "eval_cfg")


@dataclass(frozen=True)
class DatasetConfig:
    """One dataset of a configuration ``file``; ``options`` are plain dictionaries, lists and values."""

    file: Path
    options: dict[str, Any]

    @property
    def abbr(self) -> str:
        return str(self.options["abbr"])

    def error(self, message: object) -> ValueError:
        return ValueError(f"{self.file}: dataset '{self.abbr}': {message}")


def find_config(name: str, config_dir: Path | None) -> Path:
    """The file for ``name``: a path ending in .py, or the one ``<config_dir>/datasets/**/<name>.py``.

    ``config_dir`` defaults to the repository's ``config``. Raises ``ValueError`` when there is none, naming the
    nearest, or more than one.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ValueError(f"{name}: no such dataset configuration")
        return Path(name)
    known = config_files(config_dir)
    found = [file for file in known if file.stem == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"dataset '{name}' is ambiguous: {', '.join(map(str, found))}")
    near = difflib.get_close_matches(name, [file.stem for file in known], n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"there is no dataset '{name}' under {_root(config_dir)}{hint}")


def config_files(config_dir: Path | None = None) -> list[Path]:
    """All configurations by name; files whose name begins with ``_`` are parts of others."""
    return [file for file in sorted(_root(config_dir).rglob("*.py")) if not file.name.startswith("_")]


def _root(config_dir: Path | None) -> Path:
    return (config_dir or REPOSITORY / "config") / "datasets"


def loader_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dataset's configuration is for its loader."""
    return {key: value for key, value in options.items() if key not in _NOT_FOR_LOADERS}


_NOT_FOR_LOADERS = frozenset({"abbr", "type", "reader_cfg", "infer_cfg", "eval_cfg"})


def read_configs(file: Path) -> list[DatasetConfig]:
    """All datasets of ``file``. Raises ``ValueError`` naming the file for anything that is not as it should be."""
    content = read_python(file)
    configs: list[DatasetConfig] = []
    for key, value in content.items():
        if not key.endswith("_datasets"):
            continue
        if not isinstance(value, list):
            raise ValueError(f"{file}: {key} is not a list of datasets")
        configs.extend(check_dataset(file, key, entry) for entry in value)
    if not configs:
        raise ValueError(f"{file}: there is no dataset in it (a list whose name ends in _datasets)")
    return configs


def check_dataset(file: Path, key: str, entry: Any) -> DatasetConfig:
    """An entry of the list ``key`` in ``file``. Raises ``ValueError`` naming both and what is wrong."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{file}: {key} holds {entry!r}, expected dict(...)")
    if is_short(entry):
        try:
            entry = expanded(entry)
        except ValueError as error:
            raise ValueError(
                f"{file}: {key}: dataset '{entry.get('abbr', entry.get('path', '?'))}': {error}"
            ) from error
    missing = [name for name in _REQUIRED if name not in entry]
    if missing:
        raise ValueError(f"{file}: {key}: dataset '{entry.get('abbr', '?')}' lacks {', '.join(missing)}")
    config = DatasetConfig(file, _with_k_at_its_evaluator(entry))
    for name, allowed in (
        ("reader_cfg", _READER_KEYS),
        ("infer_cfg", {"prompt_template", "ice_template", "retriever", "inferencer"}),
        (
            "eval_cfg",
            {
                "evaluator",
                "pred_postprocessor",
                "dataset_postprocessor",
                "pred_role",
                "num_gpus",
                "sc_size",
                "group_column",
            },
        ),
    ):
        if not isinstance(config.options[name], Mapping):
            raise config.error(f"{name} is not a dict")
        for unknown in _unknown(config.options[name], allowed):
            near = difflib.get_close_matches(unknown, allowed, n=1)
            raise config.error(
                f"{name} has an unknown key '{unknown}'" + (f"; did you mean '{near[0]}'?" if near else "")
            )
    return config


def _with_k_at_its_evaluator(entry: Mapping[str, Any]) -> dict[str, Any]:
    """OpenCompass has pass@k's ``k`` beside the evaluator; it is an option of it."""
    eval_cfg = entry["eval_cfg"]
    if not isinstance(eval_cfg, Mapping) or "k" not in eval_cfg or not isinstance(eval_cfg.get("evaluator"), Mapping):
        return dict(entry)
    rest = {key: value for key, value in eval_cfg.items() if key != "k"}
    return {**entry, "eval_cfg": {**rest, "evaluator": {**eval_cfg["evaluator"], "k": eval_cfg["k"]}}}


_READER_KEYS = {field.name for field in dataclasses.fields(Reader)}


def _unknown(options: Mapping[str, Any], allowed: set[str]) -> Iterator[str]:
    return (key for key in options if key not in allowed)
