"""Which datasets there are by name, how many items each has, and what of their data is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoeval.datasets.loaders import load_splits, test_rows
from autoeval.datasets.rows import Source
from autoeval.openicl.sample import Reader
from autoeval.tasks.configs import DatasetConfig, config_files, loader_options, read_configs


@dataclass(frozen=True)
class Listed:
    """``name`` is what users type, ``abbr`` the dataset's. ``items`` is None when ``problem`` says why there are none."""

    name: str
    abbr: str
    items: int | None
    problem: str | None = None


def list_datasets(data_dir: Path, config_dir: Path | None = None) -> Iterator[Listed]:
    """Every dataset of every configuration, in the order of their names; data is read, no prompt is made."""
    for file in sorted(config_files(config_dir), key=lambda file: file.stem.lower()):
        try:
            configs = read_configs(file)
        except ValueError as error:
            yield Listed(file.stem, "?", None, str(error))
            continue
        for config in configs:
            yield _listed(file.stem, config, data_dir)


def _listed(name: str, config: DatasetConfig, data_dir: Path) -> Listed:
    split = str(config.options["reader_cfg"].get("test_split", Reader.test_split))
    try:
        splits = load_splits(config.options["type"], Source(data_dir, config.file), loader_options(config.options))
        rows = test_rows(splits, split)
    except ValueError as error:
        return Listed(name, config.abbr, None, str(error))
    if not rows:
        return Listed(name, config.abbr, None, f"there are no rows in the split '{split}'")
    return Listed(name, config.abbr, len(rows))
