"""Reading a YAML file so that every complaint can name the file, the line and the key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from recorder.untrusted import parse_yaml

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is for the person who wrote it."""


class YamlFile:
    """A parsed YAML mapping together with the line of each key.

    ``unset`` has a complaint for each variable that the environment lacks; its ``${NAME}`` stays in ``content``.
    """

    def __init__(self, path: Path):
        """Raises ``ConfigError`` when the file is missing, not YAML, not a mapping, or names a key twice."""
        self.path = path
        self.unset: list[str] = []
        self._lines: dict[tuple[str | int, ...], int] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
        try:
            self.content: Any = parse_yaml(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not valid YAML: {error}") from error
        if not isinstance(self.content, dict):
            raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(self.content).__name__}")
        if node is not None:
            self._note_lines(node, ())
        self.content = self._substitute(self.content, ())

    def where(self, location: tuple[str | int, ...]) -> str:
        """``file:line: key.path`` of a location; an unknown one gives its nearest known parent's line."""
        known = location
        while known and known not in self._lines:
            known = known[:-1]
        line = f":{self._lines[known]}" if known else ""
        return f"{self.path}{line}: {'.'.join(str(part) for part in location)}"

    def _note_lines(self, node: yaml.Node, location: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                child = (*location, key.value)
                if child in self._lines:
                    raise ConfigError(f"{self.path}:{key.start_mark.line + 1}: {key.value}: the key stands here twice")
                self._lines[child] = key.start_mark.line + 1
                self._note_lines(value, child)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._lines[(*location, index)] = value.start_mark.line + 1
                self._note_lines(value, (*location, index))

    def _substitute(self, value: Any, location: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._substitute(child, (*location, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._substitute(child, (*location, index)) for index, child in enumerate(value)]
        if isinstance(value, str):
            return _VARIABLE.sub(lambda match: self._variable(match.group(1), location), value)
        return value

    def _variable(self, name: str, location: tuple[str | int, ...]) -> str:
        if name not in os.environ:
            self.unset.append(f"{self.where(location)}: the environment variable {name} is not set")
            return f"${{{name}}}"
        return os.environ[name]
