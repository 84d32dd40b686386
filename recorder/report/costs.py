"""What looking at a checkpoint costs."""

from __future__ import annotations

from collections.abc import Sequence

from recorder.costs import CheckpointCost, TaskCost, checkpoint_costs, task_costs
from recorder.report.facts import Facts
from recorder.report.markup import NONE, Head, breakable, cell, quiet, row_head, table, where

_HEADS = [
    Head("device <span class=pm>seconds</span>", title="wall seconds times the devices that the model holds"),
    Head("model <span class=pm>seconds</span>", title="of them, seconds in which the model computed"),
    Head("prompt tokens", title="as if every request were computed by itself"),
    Head("unique", title="tokens left when what prompts share is counted once"),
    Head("computed", title="tokens that were computed"),
    Head("generated"),
    Head("saved", title="prompt and generated tokens over computed ones"),
    Head("tokens <span class=pm>per second</span>", title="computed tokens over the model's seconds"),
    Head("peak memory"),
]


def costs_section(facts: Facts) -> str:
    """Nothing when no result tells its cost."""
    saves = [one for one in checkpoint_costs(facts.ledger) if not one.superseded and one.device_seconds is not None]
    if not saves:
        return ""
    several = len({one.model for one in saves}) > 1
    heads = [*([Head("model", text=True)] if several else []), Head("iteration"), Head("tasks")]
    rows = [_checkpoint(one, several) for one in sorted(saves, key=lambda one: (one.model, -one.iteration))]
    total = sum(one.device_seconds or 0.0 for one in saves)
    text = f"{len(saves)} checkpoints took {_duration(total)} of a device, {_duration(total / len(saves))} each."
    newest = max(saves, key=lambda one: one.iteration)
    tasks = [one for one in task_costs(facts.ledger) if one[:3] == newest[:3]]
    tasks.sort(key=lambda one: -(one.device_seconds or 0.0))
    by_task = table(f"Cost of each task at iteration {newest.iteration}", [Head("task", text=True), *_HEADS],
                    map(_task, tasks), sortable=True)  # fmt: skip
    note = f"Task by task, at iteration {newest.iteration} of {breakable(newest.model)}:"
    return (
        quiet(text) + table("Cost of each checkpoint", [*heads, *_HEADS], rows, sortable=True) + quiet(note) + by_task
    )


def _checkpoint(one: CheckpointCost, several: bool) -> str:
    cells = [row_head(breakable(one.model), one.model)] if several else []
    cells += [cell(f"{one.iteration:,}", one.iteration), cell(str(one.tasks), one.tasks), *_figures(one)]
    return f"<tr{where(one.model)}>{''.join(cells)}</tr>"


def _task(one: TaskCost) -> str:
    return f"<tr{where(one.model, one.task)}>{row_head(breakable(one.task), one.task)}{''.join(_figures(one))}</tr>"


def _figures(one: CheckpointCost | TaskCost) -> Sequence[str]:
    read = None if one.prompt_tokens is None else one.prompt_tokens + (one.generated_tokens or 0)
    saved = read / one.computed_tokens if read and one.computed_tokens else None
    return [
        _number(one.device_seconds, ".1f"),
        _number(one.seconds, ".1f"),
        *(
            _number(n, ",.0f")
            for n in (one.prompt_tokens, one.unique_tokens, one.computed_tokens, one.generated_tokens)
        ),
        _number(saved, ".1f", "×"),
        _number(one.tokens_per_second, ",.0f"),
        _number(None if one.peak_memory_bytes is None else one.peak_memory_bytes / 1e9, ".2f", " GB"),
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return cell(NONE) if value is None else cell(f"{value:{form}}{unit}", value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
