"""What every source gives: measurements of one model at one iteration, and the errors that name the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


class SourceError(ValueError):
    """A source that cannot be used; the message names the file and what was expected."""


@dataclass(frozen=True)
class Measured:
    """One number as its file has it; ``n`` items, 0 when the file does not say and nothing tells.

    ``items`` are their outcomes by key, where the file has them.
    """

    value: float
    stderr: float | None = None
    n: int = 0
    higher_is_better: bool = True
    items: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """Task -> metric -> number, in the order of the file. ``tokens`` in billions.

    ``groups`` are those that the file itself made an average of: their members are not tasks of their own.
    ``label`` is what the file calls the model, ``chance`` what it knows of guessing, by task.
    """

    path: Path
    iteration: int | None
    tasks: dict[str, dict[str, Measured]]
    tokens: float | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = ""
    chance: dict[str, float] = field(default_factory=dict)


# iter_0002000 (Megatron), step143000 and global_step1000 (GPT-NeoX, DeepSpeed), checkpoint-500 (Hugging Face)
_ITERATION = re.compile(r"(?:iter(?:ation)?|step|checkpoint|ckpt)[_=-]?0*(\d+)(?!\d)", re.IGNORECASE)


def iteration_in(*texts: str) -> int | None:
    """The iteration that the first of ``texts`` that has one speaks of; of several in a text the last."""
    for text in texts:
        found = _ITERATION.findall(text)
        if found:
            return int(found[-1])
    return None


def series_in(files: Iterable[Path]) -> dict[str, Path]:
    """The series of files whose names differ in the iteration only, by what the names have in common; one file of each.

    ``1b_step1000.json`` and ``1b-5shot_step1000.json`` are of two series; names without an iteration are of none.
    """
    found: dict[str, Path] = {}
    for file in files:
        common = _ITERATION.sub("", file.name)
        if common != file.name:
            found.setdefault(common, file)
    return found


def expand(path: Path, patterns: Iterable[str]) -> list[Path]:
    """The files that ``path`` stands for: itself, those below a directory, or those of a glob pattern. By name."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted({one for pattern in patterns for one in path.rglob(pattern) if one.is_file()})
    else:
        base = next((parent for parent in path.parents if not set("*?[") & set(str(parent))), Path())
        found = sorted(one for one in base.glob(str(path.relative_to(base))) if one.is_file())
    if not found:
        wanted = " or ".join(patterns)
        raise SourceError(f"{path}: no such file; expected a file, a glob pattern, or a directory with {wanted}")
    return found
