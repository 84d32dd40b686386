"""The nouns that cross into the recorder, and the JSON file that carries them.

A *task* (an OpenICL dataset or a HELM scenario) evaluated on one checkpoint gives one ``TaskResult``; it is written
as one JSON file under ``<work_dir>/<model>/iter_NNNNNNN/results/<model>/<task>.json``. These files are the truth: the
ledger can be rebuilt from them at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recorder.files import write_json
from recorder.untrusted import parse_json

FORMAT = "autoeval-result/1"
SHARE_ERROR = 1e-9  # by how much rounding may carry a share out of [0, 1]


@dataclass(frozen=True)
class CheckpointRef:
    """What identifies one complete save: a re-saved iteration has another fingerprint and is another checkpoint."""

    model: str
    iteration: int
    fingerprint: str
    path: str
    tokens: float | None = None  # billions of training tokens seen


@dataclass(frozen=True)
class Score:
    """One number with its uncertainty. ``value`` and ``stderr`` share a unit; ``chance`` is what guessing gives."""

    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    chance: float | None = None


@dataclass(frozen=True)
class Item:
    """One sample's outcome for one metric; ``key`` is the same for every checkpoint, so that items can be paired.

    ``cluster`` names what the item shares with others (a passage, a subject): such outcomes are not independent.
    """

    key: str
    metric: str
    value: float
    cluster: str | None = None


@dataclass(frozen=True)
class TaskResult:
    checkpoint: CheckpointRef
    task: str
    task_version: str  # a hash of all that can change the score; two versions are never drawn on one curve
    source: str  # icl | helm
    scores: tuple[Score, ...]
    items: tuple[Item, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)  # seconds, prompt_tokens, generated_tokens, …
    finished_at: float = 0.0  # Unix time, seconds


class ResultFileError(ValueError):
    """A result file that cannot be used; the message names the file and what was expected."""


def write_result(path: Path | str, result: TaskResult) -> None:
    """Write ``result`` atomically; non-finite numbers are refused (``ValueError``)."""
    content = {"format": FORMAT, **asdict(result)}
    for item in content["items"]:
        if item["cluster"] is None:  # most items are alone, and there are many
            del item["cluster"]
    write_json(path, content)


def read_result(path: Path | str) -> TaskResult:
    """Read what ``write_result`` wrote. Raises ``ResultFileError`` naming the file and the key that is wrong."""
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultFileError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultFileError(f'{path}: expected a result file with "format": "{FORMAT}"')
    return _parse(path, content)


def _parse(path: Path | str, content: dict[str, Any]) -> TaskResult:
    try:
        result = TaskResult(
            checkpoint=CheckpointRef(**content["checkpoint"]),
            task=content["task"],
            task_version=content["task_version"],
            source=content["source"],
            scores=tuple(Score(**score) for score in content["scores"]),
            items=tuple(Item(**item) for item in content["items"]),
            cost=dict(content["cost"]),
            finished_at=float(content["finished_at"]),
        )
    except KeyError as error:
        raise ResultFileError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: {error}") from error
    wrong = next(mistakes(result), None)
    if wrong is not None:
        raise ResultFileError(f"{path}: {wrong}")
    return result


def mistakes(result: TaskResult) -> Iterator[str]:
    """What is not as its type says, or not a finite number: each names the key and the value."""
    ref = result.checkpoint
    texts = {"model": ref.model, "fingerprint": ref.fingerprint, "path": ref.path, "task": result.task}
    texts |= {"task_version": result.task_version, "source": result.source}
    yield from (f"{key}: expected a text, found {value!r}" for key, value in texts.items() if not _is_text(value))
    if type(ref.iteration) is not int:
        yield f"iteration: expected a whole number, found {ref.iteration!r}"
    if not (ref.tokens is None or _is_finite(ref.tokens)):
        yield f"tokens: expected a finite number, found {ref.tokens!r}"
    if not math.isfinite(result.finished_at):
        yield f"finished_at: expected a finite number, found {result.finished_at!r}"
    for score in result.scores:
        numbers = {"value": score.value, "stderr": score.stderr, "chance": score.chance, "n": score.n}
        for key, value in numbers.items():
            if not (_is_finite(value) or (value is None and key in ("stderr", "chance"))):
                yield f"scores: {score.metric}: {key}: expected a finite number, found {value!r}"
    if not all(_is_text(score.metric) for score in result.scores):
        yield "scores: metric: expected a text"
    for item in result.items:
        if not (_is_text(item.key) and _is_text(item.metric) and _is_finite(item.value)):
            yield f"items: {item.key!r}: {item.metric!r}: expected a finite number, found {item.value!r}"
        if not (item.cluster is None or _is_text(item.cluster)):
            yield f"items: {item.key!r}: cluster: expected a text, found {item.cluster!r}"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
