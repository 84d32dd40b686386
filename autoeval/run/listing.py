"""``run.py --datasets list``: the names one can type, with their number of items and whether the data is there."""

from __future__ import annotations

import argparse
from pathlib import Path

from autoeval.run.job import DEFAULT_DATA_DIR
from autoeval.tasks.listing import list_datasets


def print_datasets(options: argparse.Namespace) -> int:
    """A table on standard output."""
    from tabulate import tabulate

    data_dir = Path(options.data_dir or DEFAULT_DATA_DIR).absolute()
    rows = []
    for listed in list_datasets(data_dir, Path(options.config_dir) if options.config_dir else None):
        problem = " ".join((listed.problem or "").split())
        rows.append([listed.name, listed.abbr, "-" if listed.items is None else listed.items, problem or "yes"])
    if not rows:
        raise ValueError(f"{options.config_dir}/datasets: no dataset configurations there")
    print(tabulate(rows, headers=["name", "dataset", "items", f"data in {data_dir}"], disable_numparse=True))
    return 0
