"""``--status``: checkpoints × tasks × state, the last errors, and what is on disk without being evaluated, and why."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoeval.config import AutoEval
from autoeval.heartbeat import Beat, read_heartbeat
from autoeval.planning import WatchOptions, make_watcher
from recorder.ledger import CheckpointRow, JobRow, TaskRow
from recorder.untrusted import printable

SIGNS = {"done": "+", "failed": "x", "running": "r", "queued": "q"}
MOST_ERRORS = 10
SCHEMA = 1  # of the JSON: raised when a key changes its meaning or goes away, not when one is added


@dataclass(frozen=True)
class Status:
    """One run. ``checkpoints`` by iteration, each with its current task runs; ``others`` are (iteration, why not);
    ``jobs`` of a queue that have not ended."""

    model: str
    work_dir: str
    checkpoints: tuple[tuple[CheckpointRow, tuple[TaskRow, ...]], ...]
    others: tuple[tuple[int, str], ...]
    daemon: Beat | None = None
    jobs: tuple[JobRow, ...] = ()


def status_of(
    config: AutoEval,
    watch: WatchOptions,
    checkpoints: Sequence[CheckpointRow],
    tasks: Sequence[TaskRow],
    jobs: Sequence[JobRow] = (),
) -> Status:
    """From the ledger's rows of the run and a look at its checkpoint directory."""
    by_save: dict[tuple[int, str], dict[str, TaskRow]] = {}
    for task in tasks:  # of several versions the one changed last stays
        by_save.setdefault((task.iteration, task.fingerprint), {})[task.task] = task
    found = make_watcher(config, watch).scan()
    known = {row.fingerprint for row in checkpoints}
    others = [
        (c.iteration, "complete, no daemon has seen it yet") for c in found.complete if c.fingerprint not in known
    ]
    others += [(-1, f"nothing is known of what is there: {found.trouble}")] if found.trouble else []
    others += [(iteration, f"not complete yet: {reason}") for iteration, reason in found.waiting]
    others += [(i, f"never evaluated: {reason}") for i, reason in (*found.abandoned, *found.unsupported)]
    rows = [
        (row, tuple(sorted(by_save.get((row.iteration, row.fingerprint), {}).values(), key=lambda t: t.task)))
        for row in sorted(checkpoints, key=lambda row: row.iteration)
    ]
    beat = read_heartbeat(config.work_dir)
    return Status(config.model_name, str(config.work_dir), tuple(rows), tuple(others), beat, tuple(jobs))


def print_status(statuses: Sequence[Status], width: int | None = None) -> None:
    """For a person, within ``width`` columns: the terminal's. Into a pipe lines are whole, for grep to find."""
    width = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 10**6)
    for number, status in enumerate(statuses):
        if number:
            print()
        print(f"{status.model} ({status.work_dir})")
        if status.daemon is not None:
            _print_wrapped(f"daemon: {status.daemon}", width)
        if status.checkpoints:
            _print_table(status, width)
            _print_errors(status, width)
        else:
            print("  nothing evaluated yet")
        for job in status.jobs:
            where = f"{json.loads(job.runner)['type']} job {job.job or 'not submitted yet'}"
            _print_wrapped(f"iteration {job.iteration}: {where}: {job.stage}, {job.size} parts, {job.state}", width)
        for iteration, reason in status.others:
            _print_wrapped(f"iteration {iteration}: {reason}" if iteration >= 0 else reason, width)


def _print_table(status: Status, width: int) -> None:
    """A column a task where they fit, else a sign a task."""
    from tabulate import tabulate

    names = sorted({task.task for _, tasks in status.checkpoints for task in tasks})
    states = [(row, {task.task: task.state for task in tasks}) for row, tasks in status.checkpoints]
    table = tabulate(
        [[row.iteration, row.state, *(mine.get(name, "-") for name in names)] for row, mine in states],
        headers=["iteration", "state", *names],
        disable_numparse=True,  # looking at each cell for a number took longer than all the rest
        colalign=("right",),
    )
    if max(map(len, table.splitlines())) <= width:
        print(printable(table))
        return
    signs = ["".join(SIGNS.get(mine.get(name, ""), "-") for name in names) for _, mine in states]
    room = max(10, width - 50)
    body = [
        [row.iteration, row.state, _counts(mine), textwrap.fill(line, room)]
        for (row, mine), line in zip(states, signs, strict=True)
    ]
    headers = ["iteration", "state", "tasks", "each task"]
    print(printable(tabulate(body, headers=headers, disable_numparse=True, colalign=("right",))))
    listed = ", ".join(f"{place} {name}" for place, name in enumerate(names, start=1))
    _print_wrapped(f"each task: + done, x failed, r running, q queued, - none, in the order {listed}", width)


def _counts(states: dict[str, str]) -> str:
    found = list(states.values())
    return ", ".join(f"{found.count(state)} {state}" for state in SIGNS if state in found) or "-"


def _print_errors(status: Status, width: int) -> None:
    """The last ones, each with its log."""
    errors: list[tuple[float, str]] = []
    for row, tasks in status.checkpoints:
        failed = [task for task in tasks if task.error and task.error != row.error]
        if row.error and not failed:  # else it only counts them
            errors.append((row.updated_at, f"iteration {row.iteration}: {row.error}"))
        for error in dict.fromkeys(task.error for task in failed):  # of a conversion, all tasks have the same one
            mine = [task for task in failed if task.error == error]
            names, log = ", ".join(task.task for task in mine), mine[-1].log
            where = f" (log: {log})" if log else ""
            errors.append((mine[-1].updated_at, f"iteration {row.iteration}, {names}: {error}{where}"))
    errors.sort(reverse=True)
    for _, text in errors[:MOST_ERRORS]:
        _print_wrapped(text, width)
    if len(errors) > MOST_ERRORS:
        print(f"  and {len(errors) - MOST_ERRORS} earlier errors: --status --json has all")


def _print_wrapped(text: str, width: int) -> None:
    """Paths stay whole, so that they can be copied."""
    print(
        textwrap.fill(
            printable(" ".join(text.split())),
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def as_json(statuses: Sequence[Status]) -> str:
    """For a program (docs/operations.md): a list of runs. Times are Unix seconds, tokens billions."""
    return json.dumps([_run(status) for status in statuses], indent=1, ensure_ascii=False)


def _run(status: Status) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": status.model,
        "work_dir": status.work_dir,
        "daemon": None if status.daemon is None else status.daemon.as_json(),
        "jobs": [
            {
                "iteration": job.iteration,
                "fingerprint": job.fingerprint,
                "stage": job.stage,
                "runner": json.loads(job.runner)["type"],
                "job": job.job,
                "parts": job.size,
                "state": job.state,
            }
            for job in status.jobs
        ],
        "checkpoints": [
            {
                "iteration": row.iteration,
                "tokens": row.tokens,
                "state": row.state,
                "error": row.error,
                "path": row.path,
                "fingerprint": row.fingerprint,
                "updated_at": row.updated_at,
                "tasks": [
                    {
                        "task": task.task,
                        "version": task.version,
                        "state": task.state,
                        "attempts": task.attempts,
                        "error": task.error,
                        "log": task.log,
                        "updated_at": task.updated_at,
                    }
                    for task in tasks
                ],
            }
            for row, tasks in status.checkpoints
        ],
        "not_evaluated": [{"iteration": iteration, "reason": reason} for iteration, reason in status.others],
    }
