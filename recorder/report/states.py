"""Checkpoints × tasks, newest first, with the last errors and links to their logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path

from recorder.ledger import CheckpointRow, TaskRow
from recorder.report.facts import Facts
from recorder.report.markup import Head, breakable, cell, link, quiet, shortened, table, where

GLYPHS = {"done": "✓", "failed": "✕", "running": "●", "queued": "○"}
MANY = 6  # tasks from which on a sign stands for a word


def states_section(facts: Facts, report: Path) -> str:
    saves = facts.checkpoints
    if not saves:
        return quiet("No complete checkpoint has been seen yet.")
    runs: dict[tuple[str, int], dict[str, TaskRow]] = defaultdict(dict)
    for run in facts.tasks:
        runs[run.model, run.iteration][run.task] = run  # of several versions the one changed last stays
    names = sorted({name for of_checkpoint in runs.values() for name in of_checkpoint})
    several = len({row.model for row in saves}) > 1
    few = len(names) <= MANY
    heads = [
        *([Head("model", text=True)] if several else []),
        Head("iteration", text=True),
        Head("state", text=True),
        *(Head(breakable(name), text=True, task=name) for name in names),
        Head("last error", text=True),
    ]
    body = []
    for save in sorted(saves, key=lambda row: (row.model, -row.iteration)):
        mine = runs[save.model, save.iteration]
        errors = _errors(save, mine.values(), report)
        cells = [f"<th scope=row class=name>{breakable(save.model)}</th>"] if several else []
        cells.append(f"<th scope=row class=t>{save.iteration:,}</th>")
        cells.append(cell(escape(save.state), text=True, kind=f"s-{escape(save.state)}"))
        cells += [_task_cell(mine.get(name), report, few) for name in names]
        cells.append(f'<td class="error">{errors}</td>')
        wrong = bool(errors) or save.state in ("failed", "missed")
        body.append(f"<tr{where(save.model)}{' data-wrong' if wrong else ''}>{''.join(cells)}</tr>")
    note = f"{facts.superseded} earlier saves of these iterations are superseded." if facts.superseded else ""
    signs = "" if few else "✓ done, ✕ failed, ● running, ○ queued, – not asked for."
    return table("Checkpoints and tasks", heads, body, kind="states") + quiet(f"{signs} {note}".strip())


def _task_cell(run: TaskRow | None, report: Path, few: bool) -> str:
    if run is None:
        return "<td class=s-none>–</td>"
    state = escape(run.state)
    html = f"{GLYPHS.get(run.state, '')} {state}" if few else GLYPHS.get(run.state, state)
    if run.log and run.state in ("failed", "running"):
        html = f'<a href="{link(run.log, report)}" title="{state}: the log of {escape(run.task)}">{html}</a>'
    return f"<td class=s-{state}>{html}</td>"


def _errors(save: CheckpointRow, runs: Iterable[TaskRow], report: Path) -> str:
    failed = [run for run in runs if run.error]
    parts = []
    if save.error and not failed:
        parts.append(f"<p>{escape(shortened(save.error))}</p>")
    for run in failed:
        log = f' <a href="{link(run.log, report)}">log</a>' if run.log else ""
        parts.append(f"<p><strong>{escape(run.task)}</strong>: {escape(shortened(run.error or ''))}{log}</p>")
    return "".join(parts)
