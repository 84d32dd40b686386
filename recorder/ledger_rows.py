"""What the ledger answers with: rows of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class CheckpointRow(NamedTuple):
    """``superseded``: the iteration was saved again after this save. Times are Unix seconds."""

    model: str
    iteration: int
    fingerprint: str
    path: str
    tokens: float | None
    state: str
    error: str | None
    superseded: bool
    found_at: float
    updated_at: float


class TaskRow(NamedTuple):
    """The state of one task on one checkpoint. ``attempts`` counts how often it was started."""

    model: str
    iteration: int
    fingerprint: str
    task: str
    version: str
    state: str
    attempts: int
    error: str | None
    log: str | None
    updated_at: float
    superseded: bool


class JobRow(NamedTuple):
    """A job of a queue. ``key`` is what the queue keeps of it, ``job`` its id there (``None``: not known, or not submitted);
    ``runner``: the section of evaluator.yaml that made the queue, as JSON; ``manifest``: the file that says what its
    ``size`` parts are; ``state``: open, cancelling or ended."""

    model: str
    iteration: int
    fingerprint: str
    stage: str  # convert | evaluate
    key: str
    runner: str
    manifest: str
    size: int
    job: str | None
    state: str


class ScoreRow(NamedTuple):
    model: str
    iteration: int
    tokens: float | None  # billions
    task: str
    task_version: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    source: str
    superseded: bool
    recorded_at: float
    chance: float | None
    fingerprint: str
    position: int  # among the metrics of its task; the first is the one its author looks at first


class ItemRow(NamedTuple):
    iteration: int
    task: str
    metric: str
    key: str
    value: float


class OutboxRow(NamedTuple):
    id: int
    sink: str
    model: str
    iteration: int
    fingerprint: str
    task: str
    task_version: str


@dataclass(frozen=True)
class Outcomes:
    """One metric's outcome of each item, by key; repeats of an item are averaged.

    ``clusters`` names the passage or subject of the items that share one with others.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """``results`` counts those of each (model, iteration); ``unfit`` are the metrics (``<task>.<metric>``) that are
    better when lower or leave [0, 1] anywhere; ``versions`` is of each task the version recorded last.
    """

    results: Mapping[tuple[str, int], int]
    unfit: frozenset[str]
    versions: Mapping[str, str]
