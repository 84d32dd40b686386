"""Rows with the place they come from, and the readers of plain files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recorder.untrusted import parse_json

T = TypeVar("T")


class DatasetError(ValueError):
    """Data that is missing or not what it should be; the message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class Row:
    """One sample: its ``columns`` by name, and ``where`` it was read (``file:line``) for messages."""

    columns: dict[str, Any]
    where: str

    def __getitem__(self, name: str) -> Any:
        try:
            return self.columns[name]
        except KeyError:
            have = ", ".join(map(str, self.columns))
            raise DatasetError(f"{self.where}: there is no column {name!r} (there are: {have})") from None

    @property
    def digest(self) -> str:
        """A hash of the content alone: the same row is the same item wherever its file lies."""
        content = json.dumps(self.columns, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a dataset's files are looked for: beside its configuration, then under ``data_dir``."""

    data_dir: Path
    config_file: Path

    def find(self, path: str | Sequence[str]) -> Path:
        """The file or directory that ``path`` names, of several the first that is there.

        Raises ``DatasetError`` with the places that were tried.
        """
        paths = [path] if isinstance(path, str) else list(path)
        places = dict.fromkeys(place for one in paths for place in self._places(one))
        for place in places:
            if place.exists():
                return place
        tried = ", ".join(map(str, places))
        raise DatasetError(f"{self.config_file}: the data '{paths[0]}' is missing (looked for {tried})")

    def _places(self, path: str) -> list[Path]:
        relative = path.removeprefix("./")
        places = [self.config_file.parent / path, self.data_dir / path]
        if relative.startswith("data/"):
            places.insert(1, self.data_dir / relative.removeprefix("data/"))
        return places


def read_jsonl(path: Path) -> list[Row]:
    """One JSON object a line; empty lines are passed over."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}:{number}: not a line of JSON: {error}") from error
        rows.append(_row(value, f"{path}:{number}"))
    return rows


def read_json(path: Path) -> list[Row]:
    """A JSON list of objects."""
    try:
        value = parse_json("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, list):
        raise DatasetError(f"{path}: expected a JSON list of objects")
    return [_row(entry, f"{path}: item {number}") for number, entry in enumerate(value)]


def read_csv(path: Path, columns: Sequence[str] | None = None, delimiter: str = ",") -> list[Row]:
    """A CSV file with a header line, or, with ``columns``, one without."""
    if not path.is_file():
        raise DatasetError(f"{path}: the file is missing")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        try:
            names = list(columns) if columns is not None else next(reader, [])
            rows = []
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(names):
                    raise DatasetError(f"{where}: {len(cells)} cells, expected {len(names)} ({', '.join(names)})")
                rows.append(Row(dict(zip(names, cells, strict=True)), where))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: not CSV: {error}") from error
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text. Raises ``DatasetError`` when it is not there or not UTF-8."""
    return read_text(path).split("\n")


def read_text(path: Path) -> str:
    """A UTF-8 text. Raises ``DatasetError`` when it is not there or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: the file is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def subset(rows: Sequence[Row], limit: int | None) -> list[tuple[int, Row]]:
    """At most ``limit`` rows with their index in the file, in the file's order.

    Those with the smallest content hash are taken: the choice is as good as random, always the same, and the items of
    a smaller limit are among those of a larger one.
    """
    numbered = list(enumerate(rows))
    if limit is None or limit >= len(numbered):
        return numbered
    if limit < 1:
        raise DatasetError(f"limit {limit}: expected a positive number of items")
    taken = sorted(numbered, key=lambda pair: (pair[1].digest, pair[0]))[:limit]
    return sorted(taken, key=lambda pair: pair[0])


_SLICE = re.compile(r"\[(-?\d*):(-?\d*)(?::(-?\d+))?\]")


def sliced(items: Sequence[T], wanted: str) -> Sequence[T]:
    """``items[a:b][c:d]...`` as ``test_range`` has it. Raises ``ValueError`` for anything but slices."""
    at = 0
    while at < len(wanted):
        match = _SLICE.match(wanted, at)
        if match is None:
            raise ValueError(f"test_range {wanted!r}: expected slices like [0:100]")
        items = items[slice(*(int(part) if part else None for part in match.groups()))]
        at = match.end()
    return items


def in_range(rows: Sequence[Row], wanted: str | int | float | None) -> list[tuple[int, Row]]:
    """The rows of a ``test_range`` with their index: slices, a number of rows, or (below 1) a share of them."""
    if wanted is None or isinstance(wanted, str):
        return list(sliced(list(enumerate(rows)), wanted or ""))
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or wanted <= 0:
        raise ValueError(f"test_range {wanted!r}: expected slices like [0:100], a number of rows or a share of them")
    return subset(rows, max(1, int(wanted * len(rows) if wanted < 1 else wanted)))


def content_hash(rows: Iterable[Row]) -> str:
    return hashlib.sha256("".join(row.digest for row in rows).encode()).hexdigest()


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return Row(value, where)
