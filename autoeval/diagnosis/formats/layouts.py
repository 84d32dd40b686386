"""Lines that are printed by one statement have one layout: a pattern made from the first of them reads the others.

A line of a gigabyte log may cost two or three microseconds; taking each apart by its keys would cost ten times that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from autoeval.diagnosis.readings import number

if TYPE_CHECKING:
    import numpy

MOST = 32  # layouts remembered
NUMBER = rb"([-+.0-9eE]+|[-+]?(?:[nN][aA][nN]|[iI][nN][fF](?:inity)?))"


@dataclass(frozen=True)
class Layout:
    """``names`` are those of the pattern's groups, in their order; each group is a number as Python's float reads it."""

    pattern: re.Pattern[bytes]
    names: tuple[str, ...]


class LayoutReader:
    """Reads lines that hold ``mark`` once each. ``learn`` makes a layout from a line, ``None`` when it is no such line.

    ``line`` finds lines in a text; what it matches is given to ``learn``.
    """

    def __init__(self, mark: bytes, line: re.Pattern[bytes], learn: Callable[[bytes], Layout | None]) -> None:
        self._mark, self._line, self._learn = mark, line, learn
        self._layouts: list[Layout] = []

    def read(self, text: bytes) -> Iterator[dict[str, numpy.ndarray]]:
        """Columns by name, of shape (rows,), for runs of rows with the same layout, in the order of the text."""
        expected = text.count(self._mark)
        if not expected:
            return
        if not self._layouts:
            self._find(text)
        for layout in self._layouts[:2]:
            if len(found := layout.pattern.findall(text)) == expected:
                yield columns(layout, found)
                return
        yield from self._line_by_line(text)

    def _find(self, text: bytes) -> Layout | None:
        """Learn from the first line in ``text`` that can be learnt from."""
        for match in self._line.finditer(text):
            made = self._learn(match[0])
            if made is not None and made.pattern.match(match[0]):
                self._layouts = [made, *self._layouts[: MOST - 1]]
                return made
        return None

    def _line_by_line(self, text: bytes) -> Iterator[dict[str, numpy.ndarray]]:
        present, rows = None, list[tuple[bytes, ...]]()
        for match in self._line.finditer(text):
            line = match[0]
            if present is None or (found := present.pattern.match(line)) is None:
                for layout in self._layouts:
                    if found := layout.pattern.match(line):
                        break
                else:
                    if self._mark not in line or (made := self._find(line)) is None:
                        continue  # cut short, or of another kind
                    layout, found = made, made.pattern.match(line)
                if rows and present is not None:
                    yield columns(present, rows)
                present, rows = layout, []
            if found is not None:
                rows.append(found.groups())
        if rows and present is not None:
            yield columns(present, rows)


def columns(layout: Layout, rows: list[tuple[bytes, ...]]) -> dict[str, numpy.ndarray]:
    """What ``layout``'s pattern found, as a column of shape (rows,) for each name."""
    import numpy

    width = len(layout.names)
    texts = chain.from_iterable(rows)  # a pattern with one group would give no tuples: all have two or more
    try:
        table = numpy.fromiter(map(float, texts), numpy.float64, len(rows) * width)
    except ValueError:  # something that looked like a number
        table = numpy.fromiter(map(number, chain.from_iterable(rows)), numpy.float64, len(rows) * width)
    table = table.reshape(len(rows), width)
    return {name: table[:, index] for index, name in enumerate(layout.names)}
