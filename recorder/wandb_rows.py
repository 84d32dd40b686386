"""What W&B is to show, as plain values: rows, summaries, the leaderboard's table. Nothing here knows the client."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recorder.baselines import Baseline
from recorder.board import Board
from recorder.leaderboard import above_chance, is_share, levels_of_chance, main_metrics, metric_key
from recorder.ledger import CheckpointRow, OutboxRow, ScoreRow, TaskRow
from recorder.published_models import PublishedModel

FINAL_STATES = frozenset({"evaluated", "recorded", "failed"})  # no further task of the checkpoint is under way
TAGS = ("evaluate", "summary")
AXES = ("iteration", "tokens")

Values = dict[str, float]
Save = tuple[str, int, str]  # (model, iteration, fingerprint)


@dataclass(frozen=True)
class Row:
    """One history row: all ``values`` of a checkpoint, with iteration, tokens, average and the _stderr keys.

    ``due`` names those that have not been published yet; the others need only be there.
    """

    iteration: int
    values: Values
    due: frozenset[str]
    outbox_ids: tuple[int, ...] = ()

    def lacking(self, known: Mapping[tuple[int, str], float]) -> Values:
        """What must be sent, with its axes, where ``known`` is shown already; empty when nothing must."""
        lacking = {key for key in self.values if not _shown(known.get((self.iteration, key)), self, key)}
        return {key: value for key, value in self.values.items() if key in lacking or key in AXES} if lacking else {}

    def only_due(self) -> Row:
        """Without what was published before: offline, a directory carries what is new."""
        return replace(self, values={k: value for k, value in self.values.items() if k in self.due or k in AXES})

    def renamed(self, names: Mapping[str, str]) -> Row:
        values = {names.get(key, key): value for key, value in self.values.items()}
        return replace(self, values=values, due=frozenset(names.get(key, key) for key in self.due))


def _shown(shown: float | None, row: Row, key: str) -> bool:
    """Whether a value is on show. Of what was published before it is enough that there is one: another writer's
    opinion is not fought over."""
    return shown is not None and (key not in row.due or same_number(shown, row.values[key]))


def same_number(one: float, other: float) -> bool:
    """Equal but for the last digits that a server's way of writing numbers may cost."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def run_id(project: str, model: str, kind: str = "model") -> str:
    """The id of a model's run: the same on every machine, and other for a baseline with the same name."""
    return hashlib.sha256(f"{project}\n{kind}\n{model}".encode()).hexdigest()[:16]


def leaderboard_run_id(project: str) -> str:
    return f"{project}-leaderboard"


def content_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def average(values: Mapping[str, float], main: Iterable[str], chance: Mapping[str, float]) -> float | None:
    """The leaderboard's score of the tasks' main metrics; ``None`` unless all are there: half a mean is on no curve.

    Neither is one with a published percentage among shares. It is over all tasks of the run, not over those that other
    models have too: history that was sent cannot be taken back when a model joins the board.
    """
    keys = list(main)
    if not keys or not all(is_share(values.get(key, -1.0)) for key in keys):
        return None
    return math.fsum(above_chance(values[key], chance.get(key, 0.0)) for key in keys) / len(keys)


def history_rows(
    pending: Sequence[OutboxRow],
    checkpoints: Sequence[CheckpointRow],
    tasks: Sequence[TaskRow],
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
    costs: Mapping[Save, Mapping[str, float]],
) -> dict[str, list[Row]]:
    """Per model a row for every checkpoint that is through, by iteration. ``costs`` becomes ``cost/<name>``."""
    partial = incomplete(tasks, scores)
    through = {(c.model, c.iteration, c.fingerprint) for c in checkpoints if c.state in FINAL_STATES}
    main, chance = _main_of_models(scores, baselines), levels_of_chance(scores, baselines)
    of_save: dict[Save, list[ScoreRow]] = defaultdict(list)
    for score in scores:
        of_save[score.model, score.iteration, score.fingerprint].append(score)
    entries: dict[Save, list[OutboxRow]] = defaultdict(list)
    for entry in pending:
        entries[entry.model, entry.iteration, entry.fingerprint].append(entry)
    rows: dict[str, list[Row]] = defaultdict(list)
    for save in sorted(through & (of_save.keys() | entries.keys())):
        model, iteration, _ = save
        known, waiting = of_save[save], entries[save]
        values = _values(known)
        wanted = {(entry.task, entry.task_version) for entry in waiting}
        due = set(_values([score for score in known if (score.task, score.task_version) in wanted]))
        if values:
            mean = average(values, main.get(model, ()), chance)
            if mean is not None and save not in partial:
                values["average"] = mean
            values |= {f"cost/{name}": value for name, value in costs.get(save, {}).items()}
            due |= {key for key in values if due and (key == "average" or key.startswith("cost/"))}
            values |= _axes(iteration, known[0].tokens)
        rows[model].append(Row(iteration, values, frozenset(due), tuple(entry.id for entry in waiting)))
    return dict(rows)


def incomplete(tasks: Sequence[TaskRow], scores: Sequence[ScoreRow]) -> set[tuple[str, int, str]]:
    """(model, iteration, fingerprint) of the saves that lack a task because it failed."""
    scored = {(score.model, score.iteration, score.fingerprint, score.task) for score in scores}
    failed = [task for task in tasks if task.state == "failed"]
    return {of[:3] for t in failed if (of := (t.model, t.iteration, t.fingerprint, t.task)) not in scored}


def summary_of(rows: Sequence[Row]) -> Values:
    """The summary of a run: the values of its highest iteration, however late a lower one arrives."""
    return max(
        (row for row in rows if row.values), key=lambda row: row.iteration, default=Row(0, {}, frozenset())
    ).values


def versions_of(model: str, scores: Sequence[ScoreRow]) -> dict[str, str]:
    """The version of each task of a model, as ``Ledger.scores`` gives one for each."""
    return {score.task: score.task_version for score in scores if score.model == model}


def own_columns(model: str, scores: Sequence[ScoreRow], columns: Mapping[str, str]) -> dict[str, str]:
    """Other names for the metrics of tasks whose version is another than that in ``columns``.

    History that was sent cannot be taken back, so a second version goes into ``<task>@<version>.<metric>``, and the
    average over such tasks into ``average@<…>``: two versions are never drawn on one curve.
    """
    changed = {
        task: f"{task}@{version[:8]}"
        for task, version in versions_of(model, scores).items()
        if columns.get(task, version) != version
    }
    if not changed:
        return {}
    names = {"average": f"average@{content_hash(changed)[:8]}"}
    for score in scores:
        if score.model == model and score.task in changed:
            names[metric_key(score)] = f"{changed[score.task]}.{score.metric}"
            names[f"{metric_key(score)}_stderr"] = f"{changed[score.task]}.{score.metric}_stderr"
    return names


def _main_of_models(scores: Sequence[ScoreRow], baselines: Sequence[Baseline]) -> dict[str, tuple[str, ...]]:
    """Per model the main metric of each task that it has."""
    main = main_metrics(scores, baselines)
    tasks: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        tasks[score.model].add(score.task)
    return {model: tuple(main[task] for task in sorted(names) if task in main) for model, names in tasks.items()}


def rows_of_published(model: PublishedModel, scores: Sequence[ScoreRow], baselines: Sequence[Baseline]) -> list[Row]:
    """The history rows of a baseline's run. Its average is over the main metrics of our tasks, if it has them all."""
    main, chance = tuple(main_metrics(scores, baselines).values()), levels_of_chance(scores, baselines)
    rows = []
    for row in model.rows:
        values = dict(row.values) | {f"{key}_stderr": value for key, value in row.stderrs.items()}
        mean = average(values, main, chance)
        values |= _axes(row.iteration, row.tokens)
        values |= {} if mean is None else {"average": mean}
        rows.append(Row(row.iteration, values, frozenset(values)))
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
