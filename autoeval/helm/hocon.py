"""HOCON without what reaches out of the file: HELM's configurations need neither includes nor substitutions."""

from __future__ import annotations

import re
from typing import Any

# Strings and comments are passed over as pyhocon would; what is then found stands for something of elsewhere. Whether ``//``
# within a line begins a comment depends on what is before it: what would matter if it did not is refused after it.
_TOKENS = re.compile(
    r'"""(?s:.*?)"{3,}|"(?:[^"\\\n]|\\.)*"|\\.|#[^\n\r]*|(?m:^)[ \t]*//[^\n\r]*'
    r'|(?P<either>//(?=[^\n\r]*(?:\$\{|include|""")))|//[^\n\r]*'
    r'|(?P<include>(?<![\w.-])include(?=\s*(?:"|url|file|package|required)))|(?P<substitution>\$\{)',
    re.IGNORECASE,
)
_NAMES = {"include": "an include", "substitution": "a substitution (${…})"}
_NAMES["either"] = '\'//\' within a line with an include, ${…} or """ behind it'


class ReachesOut(ValueError):
    """The text would be filled from another file, an address, or the environment."""


def parse_hocon(text: str) -> Any:
    """The content of ``text``. ``pyhocon`` by itself opens the files and the addresses that an ``include`` names and takes
    ``${NAME}`` from the environment, where keys are. Raises ``ReachesOut`` for both, and what ``pyhocon`` raises."""
    import pyhocon

    for found in _TOKENS.finditer(text):
        if found.lastgroup is not None:
            line = text.count("\n", 0, found.start()) + 1
            raise ReachesOut(
                f"line {line}: {_NAMES[found.lastgroup]} is not read: expected everything in this one file"
            )
    try:
        return pyhocon.ConfigFactory.parse_string(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
