"""``run.py --datasets list``: the names one can type, with their number of items and whether the data is there."""

from __future__ import annotations

import argparse
from pathlib import Path

from autoeval.datasets.rows import DatasetError
from autoeval.run.job import job_dataset
from autoeval.tasks.configs import REPOSITORY, read_configs
from autoeval.tasks.job_data import count_items


def print_datasets(options: argparse.Namespace) -> int:
    """A table on standard output."""
    from tabulate import tabulate

    folder = (Path(options.config_dir) if options.config_dir else REPOSITORY / "config") / "datasets"
    files = sorted(file for file in folder.rglob("*.py") if not file.name.startswith("_"))
    if not files:
        raise ValueError(f"{folder}: no dataset configurations there")
    data_dir = Path(options.data_dir).absolute()
    rows = []
    for file in sorted(files, key=lambda one: one.stem):
        for config in read_configs(file):
            try:
                items, data = str(count_items(job_dataset(file, dict(config.options)), {"data_dir": data_dir})), "yes"
            except DatasetError as error:
                items, data = "-", str(error).rpartition(str(file))[2].lstrip(": ")
            rows.append([file.stem, config.abbr, items, data])
    print(tabulate(rows, headers=["name", "dataset", "items", f"data in {data_dir}"], disable_numparse=True))
    return 0
