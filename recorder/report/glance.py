"""At the top: one card a run, read in ten seconds, with the comparisons behind it folded away."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from recorder import words
from recorder.ledger import CheckpointRow, TaskRow
from recorder.report.facts import Facts
from recorder.report.markup import Head, badge, breakable, cell, metric_name, quiet, row_head, table, where, word_badge
from recorder.trend import Worth
from recorder.verdict import CheckpointVerdict, TaskVerdict, Verdict

OUTLOOK_CLASS = {"worth it": "better", "not worth it": "unsure", "falling": "worse"}
SHOWN_REGRESSIONS = 3


def glance(facts: Facts) -> str:
    if not facts.models:
        return (
            '<article class="card run"><p class="sentence">Nothing yet: no complete checkpoint has been seen. This page '
            "is written anew after each one.</p></article>"
        )
    return "\n".join(_card(facts, model) for model in facts.models)


def _card(facts: Facts, model: str) -> str:
    saves = [row for row in facts.checkpoints if row.model == model]
    runs = [row for row in facts.tasks if row.model == model]
    verdict, worth = facts.verdict(model), facts.worth(model)
    failed = words.failures(saves, runs)
    parts = [_state(facts, model, saves), _newest(facts.newest.get(model), verdict), _best(facts, model)]
    if worth is not None:
        outlook = words.outlook(worth)
        parts.append(f"{escape(outlook[0].upper() + outlook[1:])}.")
    kind = _badges_kind(verdict)
    details = _details(facts, verdict) if verdict is not None else ""
    badges = "".join(_badges(verdict, worth, failed, bool(saves)))
    return (
        f'<article class="card run {kind}"{where(model)}><header><h2>{breakable(model)}</h2>{badges}</header>'
        f'<p class="sentence">{" ".join(part for part in parts if part)}</p>'
        f"{_regressions(verdict)}{_failure(saves, runs)}{details}</article>"
    )


def _badges_kind(verdict: CheckpointVerdict | None) -> str:
    from recorder.report.markup import WORD_CLASS

    previous = verdict.previous if verdict is not None else None
    return WORD_CLASS[previous.word] if previous is not None and previous.overall is not None else "plain"


def _badges(verdict: CheckpointVerdict | None, worth: Worth | None, failed: str, ours: bool) -> list[str]:
    made = []
    if verdict is not None and verdict.previous is not None and verdict.previous.overall is not None:
        made.append(word_badge(verdict.previous.word))
    if worth is not None and worth.word != "too early":
        made.append(badge(words.HEADLINE[worth.word], OUTLOOK_CLASS.get(worth.word, "plain"), "#outlook"))
    if failed:
        made.append(badge(f"✕ {failed}", "alarm", "#states"))
    elif ours:
        made.append(badge("✓ no failures", "plain"))
    return made


def _state(facts: Facts, model: str, saves: Sequence[CheckpointRow]) -> str:
    if model in facts.own:
        text = words.state(saves)
        return f"{escape(text[0].upper() + text[1:])}."
    count = len({row.iteration for row in facts.scores if row.model == model})
    return f"{count} published checkpoints, measured elsewhere."


def _newest(newest: int | None, verdict: CheckpointVerdict | None) -> str:
    if newest is None or verdict is None:
        return "No score yet."
    if verdict.previous is None:
        return f"Newest: iteration {newest:,}; there is no earlier checkpoint to compare it with."
    return f"Iteration {newest:,} {escape(words.comparison(verdict.previous))}."


def _best(facts: Facts, model: str) -> str:
    best = facts.best.get(model)
    if best is None or best.score is None or best.iteration is None or best.iteration == facts.newest.get(model):
        return ""
    return f"Highest average so far: {best.score:.3f} at iteration {best.iteration:,}."


def _regressions(verdict: CheckpointVerdict | None) -> str:
    """Tasks that fell: what an average hides."""
    found = words.fallen(verdict) if verdict is not None else []
    if not found:
        return ""
    lines = [
        f"<li>{escape(words.task_line(task))} <span class=pm>against {escape(since)}</span></li>"
        for task, since in found[:SHOWN_REGRESSIONS]
    ]
    more = f"<li>and {len(found) - SHOWN_REGRESSIONS} more</li>" if len(found) > SHOWN_REGRESSIONS else ""
    return f'<div class="notice"><strong>▼ Worse on</strong><ul>{"".join(lines)}{more}</ul></div>'


def _failure(saves: Sequence[CheckpointRow], runs: Sequence[TaskRow]) -> str:
    """The last thing that went wrong, in a line."""
    wrong: list[tuple[float, str, str]] = [
        (row.updated_at, f"iteration {row.iteration:,}, {row.state}", row.error or "")
        for row in saves
        if row.state in ("failed", "missed")
    ]
    wrong += [
        (row.updated_at, f"iteration {row.iteration:,}, {row.task}", row.error or "")
        for row in runs
        if row.state == "failed"
    ]
    if not wrong:
        return ""
    _, place, error = max(wrong)
    text = " ".join(error.split())
    shown = escape(text if len(text) <= 200 else text[:199] + "…")
    return f'<p class="notice alarm"><strong>✕ Last failure</strong> {escape(place)}: {shown}</p>'


def _details(facts: Facts, verdict: CheckpointVerdict) -> str:
    before = {one.old_iteration for one in (verdict.previous,) if one is not None}
    shown = [one for one in verdict.all if one.tasks and not (one is verdict.best and one.old_iteration in before)]
    if not shown:
        return ""
    names = {"previous": "the one before", "best": "the best"}
    listed = [names.get(one.against, one.opponent) for one in shown]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (
        f"<details><summary>Task by task, against {escape(', '.join(listed[:3]))}{more}</summary>"
        f"{''.join(map(_comparison, shown))}</details>"
    )


def _comparison(verdict: Verdict) -> str:
    new = f"{verdict.new_iteration:,}"
    old = f"{verdict.old_iteration:,}" if verdict.old_iteration is not None else verdict.opponent
    title = {"best": f"{new} against the best before, {old}", "previous": f"{new} against the one before, {old}"}
    label = title.get(verdict.against, f"{new} against {old}")
    heads = [
        Head("task", text=True),
        Head(escape(old)),
        Head(escape(new)),
        Head("change <span class=pm>95 % interval</span>"),
        Head("items <span class=pm>up, down, of</span>"),
        Head("p <span class=pm>corrected</span>"),
        Head("verdict", text=True),
    ]
    body = table(f"Task by task: {label}", heads, (_task_row(task) for task in verdict.tasks))
    corrections = "Verdicts are corrected for the number of tasks (Holm) and for how often this run has been looked at."
    if verdict.against == "best":
        corrections += " A drop is also corrected for the luck that the best of many had."
    if verdict.against == "baseline":
        corrections += " Published figures come without items, so the errors of both add."
    if any(map(words.lower_is_better, verdict.tasks)):
        corrections += " Where lower is better, the change has its sign turned: up is good everywhere."
    return f"<h3>{escape(label)}</h3>{body}{quiet(corrections)}"


def _task_row(task: TaskVerdict) -> str:
    difference = task.difference
    if words.shares(task):
        change, pair = words.signed(difference.value * 100), (difference.low * 100, difference.high * 100)
        interval = f"{words.signed(pair[0])} to {words.signed(pair[1])}"
    else:
        change, _, interval = words.plain_change(difference).replace(")", "").replace("95 %: ", "").partition(" (")
    items = f"{difference.gained:,}, {difference.lost:,}, {difference.n:,}" if task.paired else "not paired"
    return (
        f"<tr{where(task=task.metric.rpartition('.')[0])}>{row_head(metric_name(task.metric))}"
        f"{cell(words.score(task.old))}{cell(words.score(task.new))}"
        f"{cell(f'{escape(change)} <span class=pm>{escape(interval)}</span>')}{cell(items)}"
        f"{cell(escape(words.probability(difference.p_value)))}{cell(word_badge(task.word), text=True)}</tr>"
    )
