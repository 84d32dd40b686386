"""What evaluating has cost: a line a checkpoint, a line a task over all of them."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence

from recorder.costs import CheckpointCost, TaskCost, checkpoint_costs, task_costs
from recorder.report.facts import Facts
from recorder.report.markup import NONE, Head, breakable, cell, quiet, row_head, table, where


def cost_section(facts: Facts) -> str:
    if not facts.own:
        return ""
    try:
        checkpoints, tasks = checkpoint_costs(facts.ledger), task_costs(facts.ledger)
    except sqlite3.OperationalError:  # a ledger of an earlier release that nobody has opened for writing since
        return ""
    known = [one for one in checkpoints if not one.superseded and one.wall_seconds]
    if not known:
        return quiet("No result says what it has cost.")
    every = sum(one.device_seconds or one.wall_seconds or 0.0 for one in checkpoints)
    mean = sum(one.wall_seconds or 0.0 for one in known) / len(known)
    lost = sum(one.device_seconds or 0.0 for one in checkpoints if one.superseded)
    again = f", {duration(lost)} of it on saves that were superseded" if lost else ""
    note = quiet(
        f"{duration(every)} of device time so far{again}; {duration(mean)} a checkpoint on average. Prompt tokens are "
        "counted as if every request stood alone; computed is what was really computed, after shared prefixes were "
        "computed once."
    )
    return note + _by_checkpoint(known) + f"<details><summary>By task</summary>{_by_task(tasks)}</details>"


def duration(seconds: float) -> str:
    """``42 s``, ``3.5 min``, ``2.1 h``."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:,.3g} h"


def _heads(first: Sequence[Head]) -> list[Head]:
    return [
        *first,
        Head("time"),
        Head("device time"),
        Head("prompt tokens"),
        Head("computed"),
        Head("generated"),
        Head("tokens <span class=pm>per second</span>"),
        Head("memory <span class=pm>at most</span>"),
    ]


def _figures(
    wall: float | None,
    device: float | None,
    prompt: float | None,
    computed: float | None,
    generated: float | None,
    rate: float | None,
    memory: float | None,
) -> str:
    cells = [(wall, duration), (device, duration), (prompt, _whole), (computed, _whole), (generated, _whole)]
    cells += [(rate, _whole), (memory, _size)]
    return "".join(cell(NONE, "") if value is None else cell(show(value), f"{value:.9g}") for value, show in cells)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**29 else f"{value / 2**20:.0f} MiB"


def _by_checkpoint(known: Sequence[CheckpointCost]) -> str:
    several = len({one.model for one in known}) > 1
    heads = [*([Head("model", text=True)] if several else []), Head("iteration"), Head("tasks")]
    rows = (
        f"<tr{where(one.model)}>{row_head(breakable(one.model), one.model) if several else ''}"
        f"{cell(f'<strong>{one.iteration:,}</strong>', one.iteration)}{cell(f'{one.tasks:,}', one.tasks)}"
        + _figures(
            one.wall_seconds,
            one.device_seconds,
            one.prompt_tokens,
            one.computed_tokens,
            one.generated_tokens,
            one.tokens_per_second,
            one.peak_memory_bytes,
        )
        + "</tr>"
        for one in sorted(known, key=lambda one: (one.model, -one.iteration))
    )
    return table("Cost of each checkpoint", _heads(heads), rows, sortable=True)


def _by_task(costs: Iterable[TaskCost]) -> str:
    found: dict[str, list[TaskCost]] = defaultdict(list)
    for one in costs:
        found[one.task].append(one)
    rows = []
    for task, of_task in sorted(found.items()):
        seconds, computed = _sum(one.seconds for one in of_task), _sum(one.computed_tokens for one in of_task)
        rows.append(
            f"<tr{where(task=task)}>{row_head(breakable(task), task)}{cell(f'{len(of_task):,}', len(of_task))}"
            + _figures(
                _sum(one.wall_seconds for one in of_task),
                _sum(one.device_seconds for one in of_task),
                _sum(one.prompt_tokens for one in of_task),
                computed,
                _sum(one.generated_tokens for one in of_task),
                computed / seconds if computed and seconds else None,
                max((one.peak_memory_bytes for one in of_task if one.peak_memory_bytes is not None), default=None),
            )
            + "</tr>"
        )
    return table("Cost of each task", _heads([Head("task", text=True), Head("results")]), rows, sortable=True)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
