"""What W&B is to show, as plain values: rows, summaries, the leaderboard's table. Nothing here knows the client."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recorder.baselines import Baseline
from recorder.board import Board
from recorder.leaderboard import is_share, main_metrics, metric_key
from recorder.ledger import CheckpointRow, OutboxRow, ScoreRow, TaskRow
from recorder.published_models import PublishedModel

FINAL_STATES = frozenset({"evaluated", "recorded", "failed"})  # no further task of the checkpoint is under way
TAGS = ("evaluate", "summary")
AXES = ("iteration", "tokens")

Values = dict[str, float]


@dataclass(frozen=True)
class RowToSend:
    """One history row of a model's run, and the outbox entries that are settled by it."""

    model: str
    iteration: int
    values: Values  # with iteration, tokens, average and the _stderr keys
    outbox_ids: tuple[int, ...]


def run_id(project: str, model: str, kind: str = "model") -> str:
    """The id of a model's run: the same on every machine, and other for a baseline with the same name."""
    return hashlib.sha256(f"{project}\n{kind}\n{model}".encode()).hexdigest()[:16]


def leaderboard_run_id(project: str) -> str:
    return f"{project}-leaderboard"


def content_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def average(values: Mapping[str, float], main: Iterable[str]) -> float | None:
    """Plain mean over the tasks' main metrics; ``None`` unless all are there: half a mean is not on one curve.

    Neither is one with a published percentage among shares.
    """
    keys = sorted(main)
    if not keys or not all(is_share(values.get(key, -1.0)) for key in keys):
        return None
    return sum(values[key] for key in keys) / len(keys)


def rows_to_send(
    pending: Sequence[OutboxRow],
    checkpoints: Sequence[CheckpointRow],
    tasks: Sequence[TaskRow],
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
) -> list[RowToSend]:
    """One row per checkpoint that is through, by model and iteration, with the metrics that are not sent yet."""
    partial = incomplete(tasks, scores)
    through = {(c.model, c.iteration, c.fingerprint) for c in checkpoints if c.state in FINAL_STATES}
    main = _main_of_models(scores, baselines)
    of_checkpoint: dict[tuple[str, int, str], list[ScoreRow]] = defaultdict(list)
    for score in scores:
        of_checkpoint[score.model, score.iteration, score.fingerprint].append(score)
    entries: dict[tuple[str, int, str], list[OutboxRow]] = defaultdict(list)
    for entry in pending:
        if (entry.model, entry.iteration, entry.fingerprint) in through:
            entries[entry.model, entry.iteration, entry.fingerprint].append(entry)
    rows = []
    for (model, iteration, fingerprint), waiting in sorted(entries.items()):
        known = of_checkpoint[model, iteration, fingerprint]
        wanted = {(entry.task, entry.task_version) for entry in waiting}
        values = _values([score for score in known if (score.task, score.task_version) in wanted])
        if values:
            values |= _axes(iteration, known[0].tokens)
            mean = average(_values(known), main.get(model, ()))
            if mean is not None and (model, iteration, fingerprint) not in partial:
                values["average"] = mean
        rows.append(RowToSend(model, iteration, values, tuple(entry.id for entry in waiting)))
    return rows


def incomplete(tasks: Sequence[TaskRow], scores: Sequence[ScoreRow]) -> set[tuple[str, int, str]]:
    """(model, iteration, fingerprint) of the saves that lack a task because it failed."""
    scored = {(score.model, score.iteration, score.fingerprint, score.task) for score in scores}
    failed = [task for task in tasks if task.state == "failed"]
    return {of[:3] for t in failed if (of := (t.model, t.iteration, t.fingerprint, t.task)) not in scored}


def summary_of(
    model: str,
    tasks: Sequence[TaskRow],
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
    up_to: set[int],
) -> Values:
    """The summary of a model's run: the values of its highest iteration among ``up_to`` (those that W&B has)."""
    own = [score for score in scores if score.model == model and score.iteration in up_to]
    if not own:
        return {}
    newest = max(score.iteration for score in own)
    known = [score for score in own if score.iteration == newest]
    values = _values(known) | _axes(newest, known[0].tokens)
    mean = average(values, _main_of_models(scores, baselines).get(model, ()))
    if mean is None or (model, newest, known[0].fingerprint) in incomplete(tasks, scores):
        return values
    return values | {"average": mean}


def versions_of(model: str, scores: Sequence[ScoreRow]) -> dict[str, str]:
    """The version of each task of a model, as ``Ledger.scores`` gives one for each."""
    return {score.task: score.task_version for score in scores if score.model == model}


def in_own_columns(values: Values, model: str, scores: Sequence[ScoreRow], columns: Mapping[str, str]) -> Values:
    """``values`` with other names for the tasks whose version is another than that in ``columns``.

    History that was sent cannot be taken back, so a second version goes into ``<task>@<version>.<metric>``, and the
    average over such tasks into ``average@<…>``: two versions are never drawn on one curve.
    """
    changed = {
        task: f"{task}@{version[:8]}"
        for task, version in versions_of(model, scores).items()
        if columns.get(task, version) != version
    }
    if not changed:
        return values
    names = {"average": f"average@{content_hash(changed)[:8]}"}
    for score in scores:
        if score.model == model and score.task in changed:
            names[metric_key(score)] = f"{changed[score.task]}.{score.metric}"
            names[f"{metric_key(score)}_stderr"] = f"{changed[score.task]}.{score.metric}_stderr"
    return {names.get(key, key): value for key, value in values.items()}


def _main_of_models(scores: Sequence[ScoreRow], baselines: Sequence[Baseline]) -> dict[str, tuple[str, ...]]:
    """Per model the main metric of each task that it has."""
    main = main_metrics(scores, baselines)
    tasks: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        tasks[score.model].add(score.task)
    return {model: tuple(main[task] for task in sorted(names) if task in main) for model, names in tasks.items()}


def rows_of_published(model: PublishedModel, scores: Sequence[ScoreRow], baselines: Sequence[Baseline]) -> list[Values]:
    """The history rows of a baseline's run. Its average is over the main metrics of our tasks, if it has them all."""
    main = tuple(main_metrics(scores, baselines).values())
    rows = []
    for row in model.rows:
        values = dict(row.values) | {f"{key}_stderr": value for key, value in row.stderrs.items()}
        mean = average(values, main)
        values |= _axes(row.iteration, row.tokens)
        rows.append(values if mean is None else values | {"average": mean})
    return rows


def _values(scores: Iterable[ScoreRow]) -> Values:
    values: Values = {}
    for score in scores:
        values[metric_key(score)] = score.value
        if score.stderr is not None:
            values[f"{metric_key(score)}_stderr"] = score.stderr
    return values


def _axes(iteration: int, tokens: float | None) -> Values:
    return {"iteration": iteration} | ({} if tokens is None else {"tokens": tokens})


def leaderboard_table(board: Board) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells: model, iteration, tokens, score, rank, each metric of the board."""
    cells: list[list[Any]] = [
        [row.model, row.iteration, row.tokens, row.score, row.rank, *(row.metrics.get(key) for key in board.columns)]
        for row in board.rows
    ]
    return ["model", "iteration", "tokens", "score", "rank", *board.columns], cells


def curves(board: Board) -> dict[str, list[tuple[int, float, float]]]:
    """Per model (iteration, score, stderr) of every whole evaluation: the leaderboard's score along the training."""
    found: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for row in board.over_training():
        if not row.is_baseline and row.iteration is not None and row.score is not None:
            found[row.model].append((row.iteration, row.score, row.stderr or 0.0))
    return {model: sorted(points) for model, points in sorted(found.items())}
