"""Reading what somebody else wrote: checkpoints of another user, results of other programs, downloaded files.

Nothing here runs what it reads. Beyond that: only regular files are opened (a pipe would be waited for, for ever), none
is longer than expected, nesting and repetition are limited, and what is shown to a person cannot steer a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import traceback
from pathlib import Path
from typing import Any, BinaryIO

_MOST_YAML_VALUES = 200_000  # with every alias counted as what it stands for
_DEEPEST_YAML = 200
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def open_regular(path: Path | str, most: int | None = None) -> BinaryIO:
    """Open a regular file of at most ``most`` bytes. Raises ``OSError`` for anything else, without waiting for it."""
    _refuse(path, Path(path).stat(), most)  # before: opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse(path, os.fstat(descriptor), most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse(path: Path | str, found: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(0, f"has {found.st_size} bytes, expected at most {most}", str(path))


def read_regular(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises ``OSError``."""
    with open_regular(path, most) as stream:
        return stream.read(most)


def parse_json(content: str | bytes) -> Any:
    """``json.loads``, where everything that is wrong is a ``JSONDecodeError``: also nesting without end, bytes that are no
    UTF-8 and numbers of thousands of digits."""
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def parse_yaml(text: str) -> Any:
    """``yaml.safe_load``, where everything that is wrong is a ``yaml.YAMLError``: also nesting without end, an alias inside
    of what it stands for, aliases of aliases that would make millions of values of a few lines, and dates that are none."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _values(node, {}, 0) > _MOST_YAML_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_YAML_VALUES} values")
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from error


def _values(node: Any, known: dict[int, int], depth: int) -> int:
    """How many values ``node`` stands for. ``known`` by the node's identity: aliases are one node."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return 1
    counted = known.get(id(node))
    if counted is None:
        if depth > _DEEPEST_YAML:
            raise yaml.YAMLError("nested too deeply")
        known[id(node)] = -1  # being counted
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counted = known[id(node)] = 1 + sum(_values(part, known, depth + 1) for part in inner)
    if counted < 0:
        raise yaml.YAMLError("an alias stands for what it is part of")
    return counted


def csv_cell(value: Any) -> Any:
    """A name as a spreadsheet shows it and does not compute it: one that begins like a formula gets an apostrophe before it.
    Numbers, and texts that are numbers, stay what they are."""
    if not isinstance(value, str) or len(value) < 2 or value[0] not in "=+-@\t\r":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def printable(text: str) -> str:
    """``text`` with escapes for what would steer a terminal or turn the direction of writing; lines and tabs stay."""
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\x80" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


class PrintableRecord(logging.LogRecord):
    """Log lines hold what others named and wrote, and are read in terminals: ``logging.setLogRecordFactory(PrintableRecord)``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if isinstance(self.exc_info, tuple):  # what a formatter finds here it takes as it is
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return printable(super().getMessage())
