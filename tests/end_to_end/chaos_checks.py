"""What must hold after every schedule, however it went."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.end_to_end.chaos_training import Story

Scores = Mapping[tuple[str, str], tuple[float, float | None, int]]  # (task, metric) -> value, stderr, n

# Reasons that a person can act on, of what a fault did to a checkpoint. ``--retry`` mends each.
OF_FAULTS = ("ended with signal", "No space left", "disk is full", "gave no sign of life", "its disk has", "code 1 ")


def rows(work_dir: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(work_dir / "ledger.sqlite")) as connection:
        return connection.execute(query).fetchall()


def scores_of(work_dir: Path) -> dict[tuple[int, str], dict[tuple[str, str], tuple[float, float | None, int]]]:
    """By (iteration, fingerprint), the superseded too."""
    found: dict[tuple[int, str], dict[tuple[str, str], tuple[float, float | None, int]]] = {}
    query = (
        "SELECT c.iteration, c.fingerprint, r.task, s.metric, s.value, s.stderr, s.n FROM checkpoint_rows c "
        "JOIN result_rows r ON r.checkpoint_id = c.id JOIN score_rows s ON s.result_id = r.id"
    )
    for iteration, mark, task, metric, value, stderr, n in rows(work_dir, query):
        scores = found.setdefault((iteration, mark), {})
        assert (task, metric) not in scores, f"iteration {iteration}: {task}.{metric} stands there twice"
        scores[task, metric] = (value, stderr, n)
    return found


def wrong_in_ledger(work_dir: Path, story: Story, reference: Mapping[str, Scores]) -> list[str]:
    """Each save has the scores of its own weights, all of them or a reason."""
    wrong = []
    if (said := rows(work_dir, "PRAGMA integrity_check")) != [("ok",)]:
        wrong.append(f"ledger: {said}")
    columns = "iteration, fingerprint, state, error, superseded"
    states = {(i, f): (s, e, p) for i, f, s, e, p in rows(work_dir, f"SELECT {columns} FROM checkpoint_rows")}
    try:
        scores = scores_of(work_dir)
    except AssertionError as error:
        return [*wrong, str(error)]
    for (iteration, mark), (state, error, superseded) in states.items():
        where = f"iteration {iteration} ({mark[:8]}, {'superseded, ' if superseded else ''}{state}: {error})"
        save = story.saves.get(mark)
        if (mine := scores.get((iteration, mark))) is not None:
            if save is None:
                wrong.append(f"{where}: scores of a save that never was whole")
            elif any(mine[key] != reference[save.variant][key] for key in mine):
                wrong.append(f"{where}: scores {mine}, undisturbed {reference[save.variant]}")
            elif state == "recorded" and mine.keys() != reference[save.variant].keys():
                wrong.append(f"{where}: recorded with {sorted(mine)}")
        elif state == "recorded":
            wrong.append(f"{where}: recorded without scores")
        if state not in ("recorded", "missed") and not superseded:
            wrong.append(f"{where}: left in this state")
        if state in ("missed", "failed") and not error:
            wrong.append(f"{where}: no reason")
    current = [iteration for (iteration, _), (_, _, superseded) in states.items() if not superseded]
    wrong += [f"iteration {i}: {n} current saves" for i, n in Counter(current).items() if n > 1]
    for mark, save in story.saves.items():
        state, error, superseded = states.get((save.iteration, mark), ("unknown", None, 0))
        if save.on_disk and (state != "recorded" or superseded):
            wrong.append(
                f"iteration {save.iteration}: is whole on the disk, but {state}: {error} (superseded {superseded})"
            )
    return wrong


def wrong_in_status(status: list[dict[str, Any]], story: Story) -> list[str]:
    """What was never whole is told with its reason."""
    (run,) = status
    told = {one["iteration"]: one["reason"] for one in run["not_evaluated"]}
    return [f"iteration {i}: no reason why it is not evaluated" for i in sorted(story.unfinished) if not told.get(i)]


def wrong_in_views(work_dir: Path, model: str) -> list[str]:
    """The leaderboard and the report show the ledger as it is in the end."""
    wrong = []
    query = f"SELECT iteration, task || '.' || metric, value FROM scores WHERE model = '{model}' AND superseded = 0"
    ledger: dict[int, dict[str, float]] = {}
    for iteration, metric, value in rows(work_dir, query):
        ledger.setdefault(iteration, {})[metric] = value
    if not ledger:
        return []
    with (work_dir / "leaderboard.csv").open(newline="") as stream:
        mine = [row for row in csv.DictReader(stream) if row["model"] == model]
    if len(mine) != 1:
        return [f"leaderboard.csv has {len(mine)} rows of {model}"]
    iteration = int(mine[0]["iteration"])
    shown = {metric: float(mine[0][metric]) for metric in ledger[max(ledger)] if mine[0].get(metric)}
    if iteration != max(ledger) or any(abs(shown[key] - ledger[iteration][key]) > 1e-6 for key in shown) or not shown:
        wrong.append(f"leaderboard.csv shows iteration {iteration} with {shown}, the ledger has {ledger}")
    report = (work_dir / "report.html").read_text(encoding="utf-8")
    if "</html>" not in report[-200:]:
        wrong.append("report.html has no end")
    return wrong


def wrong_on_disk(work_dir: Path) -> list[str]:
    """No temporary file, no half file, nothing pinned any more."""
    wrong = []
    for path in sorted(work_dir.rglob("*")):
        inside = path.relative_to(work_dir)
        if inside.parts[0] == "wandb":  # the client's own
            continue
        name = path.name
        if name.endswith(".tmp") or ".partial" in name or name.startswith(".hf.old"):
            wrong.append(f"{inside} was left")
        elif inside.parts[0] == ".pins" and path.is_file():
            wrong.append(f"{inside} is still pinned")
        elif name.endswith(".json") and path.is_file():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                wrong.append(f"{inside} is no JSON: {error}")
    return wrong


def wrong_at_wandb(backend: Any, work_dir: Path, run_id: str, model: str, may_repeat: set[int]) -> list[str]:
    """W&B's history has each value of the ledger, none twice."""
    from wandb_world import doubled, history

    wrong = [f"unhandled: {asked[:300]}" for asked in backend.unhandled]
    ids = [key for key in backend.runs if key[-1] == run_id or str(key[-1]).startswith(f"{run_id}-")]
    shown: dict[Any, float] = {}
    twice: list[Any] = []
    for key in ids:
        shown |= history(backend.runs[key])
        twice += doubled(backend.runs[key])
    query = f"SELECT iteration, task || '.' || metric, value FROM scores WHERE model = '{model}' AND superseded = 0"
    for iteration, metric, value in rows(work_dir, query):
        if shown.get((iteration, metric)) != value:
            wrong.append(
                f"W&B: iteration {iteration} {metric}: {shown.get((iteration, metric))}, in the ledger {value}"
            )
    wrong += [f"W&B: {at} was sent twice" for at in twice if at[0] not in may_repeat]
    return wrong
