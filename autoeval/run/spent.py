"""What earlier runs in the same place took, from the notes that inference leaves beside its logs."""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoeval.partitioners.base import Dataset, Spent
from autoeval.tasks.names import output_path
from autoeval.tasks.openicl import OpenICLInferTask

_PART = re.compile(r"_\d+$")
MOST_RUNS = 20  # the newest that are looked at


class SpentBefore:
    """``work_dir`` has the runs, each in a folder called after its time."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._runs: list[Path] | None = None
        self._known: dict[Path, Spent | None] = {}

    def __call__(self, model: Mapping[str, Any], dataset: Dataset) -> Spent | None:
        """Of the newest run that had this model on this dataset, whole or in parts."""
        if self._runs is None:
            found = [path for path in self._work_dir.glob("*") if (path / OpenICLInferTask.log_subdir).is_dir()]
            self._runs = sorted(found, reverse=True)[:MOST_RUNS]
        for run in self._runs:
            note = output_path(run / OpenICLInferTask.log_subdir, model, dataset)
            # A part is called <abbr>_<number>; but the abbr itself may end like that.
            for stem in dict.fromkeys((note.stem, _PART.sub("", note.stem))):
                if (spent := self._read(note.with_name(stem))) is not None:
                    return spent
        return None

    def _read(self, note: Path) -> Spent | None:
        if note not in self._known:
            self._known[note] = _sum(note)
        return self._known[note]


def _sum(note: Path) -> Spent | None:
    """Of the whole dataset, else of its parts."""
    whole = note.with_name(f"{note.name}.seconds.json")
    files = [whole] if whole.exists() else note.parent.glob(f"{glob.escape(note.name)}_*.seconds.json")
    notes = [content for file in files if (content := _content(file)) is not None]
    items = sum(one["items"] for one in notes)
    if items <= 0:
        return None
    return Spent(math.fsum(one["seconds"] for one in notes) / items, max(one["load_seconds"] for one in notes))


def _content(file: Path) -> dict[str, float] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {key: float(content[key]) for key in ("items", "seconds", "load_seconds")}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing depends on it but how tasks are dealt out
    return found if all(math.isfinite(value) and value >= 0 for value in found.values()) else None
