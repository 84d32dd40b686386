"""Published figures of other models, read from ``baselines.yaml``.

Two shapes are taken. Ours:

    models:
      - {name: gpt2-124m, tokens: 10, source: "a paper, table 2", values: {mmlu.EM: 0.26, mmlu.EM_stderr: 0.01}}

and the one of ``recorder/wandb_writer.py``, whose entries with ``source: file`` carry the numbers themselves:

    evals:
      - {eval_type: helm, source: file, model_name: gpt2-124m, token_num: 10, eval_result: {mmlu: {EM: 0.26}}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recorder.untrusted import parse_yaml

STDERR = "_stderr"


@dataclass(frozen=True)
class Baseline:
    """``values`` and ``stderrs`` by ``<task>.<metric>``; ``tokens`` in billions; ``source`` says where it stands.

    ``chance`` is what guessing gives, where it is known, and ``lower`` names the metrics that are better when lower.
    """

    name: str
    tokens: float | None
    values: dict[str, float]
    source: str
    stderrs: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    lower: tuple[str, ...] = ()


class BaselinesError(ValueError):
    """A baselines file that cannot be used; the message names the file and the key."""


def load_baselines(path: Path | str) -> list[Baseline]:
    """Read the baselines of a YAML file in either shape. Raises ``BaselinesError``."""
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BaselinesError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping) or not ("models" in content or "evals" in content):
        raise BaselinesError(f"{path}: expected a mapping with the key 'models' (or 'evals')")
    found = [
        _own(f"{path}: models[{index}]", entry) for index, entry in enumerate(_entries(path, content, "models"))
    ] + [
        _published(f"{path}: evals[{index}]", entry)
        for index, entry in enumerate(_entries(path, content, "evals"))
        if isinstance(entry, Mapping) and entry.get("source") == "file"
    ]
    for index, baseline in enumerate(found):
        if any(other.name == baseline.name for other in found[:index]):
            raise BaselinesError(f"{path}: the model name '{baseline.name}' comes twice")
    return found


def _entries(path: Path | str, content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise BaselinesError(f"{path}: {key}: expected a list of models, found {type(entries).__name__}")
    return entries


def _own(where: str, entry: Any) -> Baseline:
    entry = _mapping(where, entry)
    unknown = sorted(map(str, set(entry) - {"name", "tokens", "source", "values"}))
    if unknown:
        raise BaselinesError(f"{where}.{unknown[0]}: unknown key; known are name, tokens, source, values")
    numbers = {
        str(key): _number(f"{where}.values.{key}", value)
        for key, value in _mapping(f"{where}.values", entry.get("values")).items()
    }
    for key in numbers:
        if "." not in key:
            raise BaselinesError(f"{where}.values.{key}: expected a key of the form task.metric, like mmlu.EM")
    return _baseline(where, entry.get("name"), "name", entry.get("tokens"), "tokens", numbers, entry.get("source"))


def _published(where: str, entry: Mapping[str, Any]) -> Baseline:
    numbers = {
        f"{task}.{metric}": _number(f"{where}.eval_result.{task}.{metric}", value)
        for task, metrics in _mapping(f"{where}.eval_result", entry.get("eval_result")).items()
        for metric, value in _mapping(f"{where}.eval_result.{task}", metrics).items()
    }
    return _baseline(where, entry.get("model_name"), "model_name", entry.get("token_num"), "token_num", numbers, None)


def _baseline(
    where: str, name: Any, name_key: str, tokens: Any, tokens_key: str, numbers: dict[str, float], source: Any
) -> Baseline:
    if not isinstance(name, str) or not name.strip():
        raise BaselinesError(f"{where}.{name_key}: expected the model's name, found {name!r}")
    return Baseline(
        name=name,
        tokens=None if tokens is None else _number(f"{where}.{tokens_key}", tokens),
        values={key: value for key, value in numbers.items() if not key.endswith(STDERR)},
        source="" if source is None else str(source),
        stderrs={key.removesuffix(STDERR): value for key, value in numbers.items() if key.endswith(STDERR)},
    )


def _mapping(where: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise BaselinesError(f"{where}: expected a mapping, found {value!r}")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BaselinesError(f"{where}: expected a finite number, found {value!r}")
    return float(value)
