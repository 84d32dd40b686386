"""Configuration files by name: ``--models``, ``--datasets`` and ``--summarizer`` below ``config/``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


def matching_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """One file for each pattern: a path ending in .py, or a name (``*`` and ``?`` allowed) anywhere below ``folder``.

    Raises ``ValueError`` with a table of the patterns that fit no file or more than one.
    """
    known = sorted(file for file in folder.rglob("*.py") if not file.name.startswith("_"))
    names = [file.stem for file in known]
    found: list[Path] = []
    unmatched: list[list[str]] = []
    ambiguous: list[list[str]] = []
    for pattern in patterns:
        if pattern.endswith(".py"):
            if not Path(pattern).is_file():
                raise ValueError(f"{pattern}: no such file")
            found.append(Path(pattern))
            continue
        files = [file for file in known if fnmatch(file.stem.lower(), pattern.lower())]
        if len(files) == 1:
            found += files
        elif files:
            ambiguous.append([pattern, "\n".join(str(file.relative_to(folder)) for file in files)])
        else:
            unmatched.append([pattern, ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)) or "-"])
    if unmatched or ambiguous:
        raise ValueError(f"in {folder}:\n" + "\n".join(_tables(unmatched, ambiguous)))
    return list(dict.fromkeys(found))


def _tables(unmatched: Sequence[Sequence[str]], ambiguous: Sequence[Sequence[str]]) -> list[str]:
    from tabulate import tabulate

    tables = []
    if unmatched:
        tables.append(tabulate(unmatched, headers=["Not matched patterns", "Nearest"], tablefmt="psql"))
    if ambiguous:
        tables.append(tabulate(ambiguous, headers=["Ambiguous patterns", "Matched files"], tablefmt="psql"))
    return tables
