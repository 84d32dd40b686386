"""Which items turned right, which turned wrong: a table of sums, and the data that the browser of items shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorder import words
from recorder.report.markup import (
    NONE,
    Head,
    badge,
    breakable,
    cell,
    link,
    metric_name,
    quiet,
    row_head,
    table,
    task_of,
    where,
)
from recorder.trajectories import RIGHT, Forgetting, ItemTrajectory, TaskTrajectories

STRIP = 30  # checkpoints shown of an item
OF_A_METRIC, OF_ALL = 200, 4000  # items kept: the report stays small enough to be mailed


def flips_section(known: Sequence[TaskTrajectories]) -> str:
    if not known:
        return quiet("Items can be followed from the second evaluated checkpoint on.")
    several = len({one.model for one in known}) > 1
    heads = [
        *([Head("model", text=True)] if several else []),
        Head("task", text=True),
        Head("items"),
        Head("never learned"),
        Head("forgotten", title="were right twice in a row, and have been wrong since, at least twice"),
        Head("turned right <span class=pm>last step</span>"),
        Head("turned wrong <span class=pm>last step</span>"),
        Head("turned wrong <span class=pm>since the best</span>"),
        Head(
            "forgetting", text=True, title="more items lost than gained, beyond chance (one-sided exact McNemar, Holm)"
        ),
    ]
    note = quiet(
        "Forgetting is a significant number of right answers turned wrong, not a drop of an average: an average can "
        "stand still while a tenth of the items is exchanged."
    )
    return note + table("Items that changed", heads, (_row(one, several) for one in known))


def _row(one: TaskTrajectories, several: bool) -> str:
    last, best = _last(one), _best(one)
    worst = min((pair for pair in (last, best) if pair is not None), key=lambda pair: pair.p_value, default=None)
    found = worst is not None and worst.significant
    said = (
        f"▼ since {worst.old:,} (p = {words.probability(worst.p_value)})"
        if worst is not None and found
        else "none seen"
    )
    cells = [
        *([row_head(breakable(one.model))] if several else []),
        row_head(metric_name(one.metric)),
        cell(f"{len(one.items):,}"),
        cell(f"{one.never_learned:,}"),
        cell(f"{len(one.forgotten):,}"),
        cell(NONE if last is None else f"{last.gained:,}"),
        cell(NONE if last is None else f"{last.lost:,}"),
        cell(NONE if best is None else f"{best.lost:,}"),
        cell(badge(said, "worse" if found else "plain"), text=True),
    ]
    return f"<tr{where(one.model, task_of(one.metric))}>{''.join(cells)}</tr>"


def _last(one: TaskTrajectories) -> Forgetting | None:
    old, new = one.iterations[-2:]
    return next((pair for pair in one.forgetting if (pair.old, pair.new) == (old, new)), None)


def _best(one: TaskTrajectories) -> Forgetting | None:
    """The best checkpoint before against the newest, where it is not the last step again."""
    pair = one.forgetting[-1] if one.forgetting else None
    return (
        pair if pair is not None and pair.new == one.iterations[-1] and pair.old != one.iterations[-2] else _last(one)
    )


def flips_data(known: Sequence[TaskTrajectories], report: Path) -> list[dict[str, Any]]:
    """What the browser of items shows: per metric the items that changed most lately, each as a strip of 0 and 1."""
    left, made = OF_ALL, []
    for one in known:
        chosen = _chosen(one)[: min(OF_A_METRIC, left)]
        left -= len(chosen)
        if not chosen:
            continue
        best = _best(one)
        shown = one.iterations[-STRIP:]
        made.append(
            {
                "model": one.model,
                "metric": one.metric,
                "task": task_of(one.metric),
                "iterations": list(shown),
                "best": None if best is None else best.old,
                "answers": _answers(one, report),
                "items": [
                    [item.key, _strip(item.outcomes[-STRIP:]), *_before(one, item, best), item.flips, item.forgotten_at]
                    for item in chosen
                ],
            }
        )
    return made


def _chosen(one: TaskTrajectories) -> list[ItemTrajectory]:
    """Items that changed, those of the last step first, then the forgotten ones, then the restless."""

    def order(item: ItemTrajectory) -> tuple[bool, bool, int, str]:
        now, before = _right(item.outcomes[-1]), _right(item.outcomes[-2])
        return (now == before, item.forgotten_at is None, -item.flips, item.key)

    return sorted((item for item in one.items if item.flips), key=order)


def _before(one: TaskTrajectories, item: ItemTrajectory, best: Forgetting | None) -> tuple[int, int]:
    """The change since the one before, and since the best: 1 turned right, -1 turned wrong, 0 neither."""
    at = one.iterations.index(best.old) if best is not None else -2
    now = _right(item.outcomes[-1])

    def change(then: bool | None) -> int:
        return 0 if now is None or then is None else int(now) - int(then)

    return change(_right(item.outcomes[-2])), change(_right(item.outcomes[at]))


def _right(value: float | None) -> bool | None:
    return None if value is None else value >= RIGHT


def _strip(outcomes: Sequence[float | None]) -> str:
    return "".join("-" if value is None else str(int(value >= RIGHT)) for value in outcomes)


def _answers(one: TaskTrajectories, report: Path) -> list[dict[str, Any]]:
    """Links to what the model answered, where the files are still beside the report."""
    found = []
    for iteration in reversed(one.iterations[-2:]):
        folder = report.absolute().parent / one.model / f"iter_{iteration:07d}" / "predictions" / one.model
        path = folder / f"{task_of(one.metric)}.json"
        if path.is_file():
            found.append({"iteration": iteration, "href": link(str(path), report)})
    return found
