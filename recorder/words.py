"""Verdicts as sentences, the same in the report, in messages and on the terminal. Plain text: who shows it escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recorder.ledger import CheckpointRow, TaskRow
from recorder.statistics import LEVEL, Difference
from recorder.trend import Outlook, Worth
from recorder.verdict import CheckpointVerdict, TaskVerdict, Verdict

AT_WORK = frozenset({"found", "pinned", "converted", "evaluating"})
HEADLINE = {  # what T's word means for a person who has ten seconds
    "worth it": "worth going on",
    "not worth it": "stopping is defensible",
    "falling": "getting worse",
    "cannot tell": "not clear whether to go on",
    "too early": "too early to say whether to go on",
}


def signed(value: float, digits: int = 1) -> str:
    """``+3.2`` or ``−0.4``; what rounds to nothing has no sign: 0.0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def points(difference: Difference) -> str:
    """``+3.2 points (95 %: +1.1 to +5.3)``: percentage points of a score between 0 and 1."""
    interval = f"{signed(difference.low * 100)} to {signed(difference.high * 100)}"
    return f"{signed(difference.value * 100)} points (95 %: {interval})"


def basis(verdict: Verdict) -> str:
    """``520 paired items in 4 tasks``: what the headline rests on."""
    averaged = [task for task in verdict.tasks if task.averaged]
    total = sum(task.difference.n for task in averaged)
    paired = "paired " if averaged and all(task.paired for task in averaged) else ""
    tasks = f" in {len(averaged)} tasks" if len(averaged) != 1 else ""
    return f"{total:,} {paired}item{'' if total == 1 else 's'}{tasks}"


def opponent(verdict: Verdict) -> str:
    if verdict.old_iteration is None:
        return verdict.opponent
    place = f"iteration {verdict.old_iteration:,}"
    return f"the best so far, {place}" if verdict.against == "best" else place


def comparison(verdict: Verdict) -> str:
    """After ``iteration 2,000``: whether it is better or worse, than what, by how much."""
    difference = verdict.overall
    if difference is None:
        return f"cannot be compared with {opponent(verdict)}: the scores carry no standard errors"
    change = f"{points(difference)}, {basis(verdict)}"
    if difference.verdict != "cannot tell":
        return f"is {difference.verdict} than {opponent(verdict)}: {change}"
    return f"cannot be told from {opponent(verdict)}: {change}; {why_not(verdict)}"


def why_not(verdict: Verdict) -> str:
    """Why no claim is made: too few items, or one look too many."""
    difference = verdict.overall
    assert difference is not None
    if difference.low <= 0 <= difference.high or verdict.p_alone >= LEVEL:
        return f"a change below {difference.detectable * 100:.1f} points would likely be missed"
    return (
        f"alone it would count (p = {probability(verdict.p_alone)}), but at the {ordinal(verdict.look)} look at this run "
        "more is asked"
    )


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{suffix}"


def task_line(task: TaskVerdict) -> str:
    """``lambada.acc: 0.372 → 0.328, −4.4 points (95 %: …)``."""
    course = f"{task.metric}: {score(task.old)} → {score(task.new)}"
    if lower_is_better(task):
        return f"{course} (lower is better)"
    return f"{course}, {points(task.difference) if shares(task) else plain_change(task.difference)}"


def fallen(verdict: CheckpointVerdict) -> list[tuple[TaskVerdict, str]]:
    """The tasks that are worse beyond noise, with what they are held against: the checkpoint before, or their best."""
    found: dict[str, tuple[TaskVerdict, str]] = {}
    if verdict.previous is not None:
        found = {task.metric: (task, opponent(verdict.previous)) for task in verdict.previous.regressions}
    for task in verdict.regressions:
        found.setdefault(task.metric, (task, "the best checkpoint at it"))
    return list(found.values())


def lower_is_better(task: TaskVerdict) -> bool:
    """Seen from the difference, in which up is good for every metric."""
    return (task.new - task.old) * task.difference.value < 0


def shares(task: TaskVerdict) -> bool:
    return all(-1e-9 <= value <= 1 + 1e-9 for value in (task.old, task.new))


def plain_change(difference: Difference) -> str:
    """In the metric's own unit; up is good."""
    low, high = (f"{value:+.3g}" for value in (difference.low, difference.high))
    return f"{difference.value:+.3g} (95 %: {low} to {high})".replace("-", "−")


def score(value: float) -> str:
    """Three decimals of a share, three digits or more of anything else."""
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def tokens(billions: float) -> str:
    """``1.02 million``, ``300 billion``, ``1.5 trillion``: three digits."""
    for unit, size in (("trillion", 1e3), ("billion", 1.0), ("million", 1e-3), ("thousand", 1e-6)):
        if abs(billions) >= size * 0.9995 or unit == "thousand":
            number = float(f"{billions / size:.3g}")
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:g} {unit}"
    raise AssertionError


def outlook(worth: Worth) -> str:
    """Whether to go on, in one sentence, for a person who has not asked for statistics."""
    one = worth.headline
    if one is None or one.gain is None or one.low is None or one.high is None:
        return f"{HEADLINE['too early']} (a curve needs 5 checkpoints)"
    return f"{HEADLINE[one.word]}: {expected(one)}"


def expected(one: Outlook) -> str:
    """``the next 150 billion tokens should bring +2.1 points (90 %: …)``."""
    assert one.gain is not None and one.low is not None and one.high is not None
    ahead = f"{tokens(one.ahead)} tokens" if one.unit == "tokens" else f"{one.ahead:,.0f} iterations"
    if one.low == one.high:
        return f"at its present pace the next {ahead} lead to the top of the scale, {signed(one.gain * 100)} points"
    interval = f"{signed(one.low * 100)} to {signed(one.high * 100)}"
    text = f"the next {ahead} should bring {signed(one.gain * 100)} points (90 %: {interval})"
    return (
        f"{text}, less than can be seen ({one.detectable * 100:.1f})"
        if one.below_detectable and one.detectable
        else text
    )


def state(saves: Sequence[CheckpointRow]) -> str:
    """Where a run is: ``saves`` are its current ones."""
    if not saves:
        return "no checkpoint is known"
    waiting = [row for row in saves if row.state in AT_WORK]
    busy = [row.iteration for row in waiting if row.state in ("converted", "evaluating")]
    done = sum(row.state in ("evaluated", "recorded") for row in saves)
    if busy:
        others = len(waiting) - 1
        return f"evaluating iteration {busy[0]:,}{f', {others} more waiting' if others else ''}, {done} evaluated"
    if waiting:
        return f"{len(waiting)} of {len(saves)} checkpoints waiting, {done} evaluated"
    if done == len(saves):
        return f"all {len(saves)} checkpoints evaluated" if done > 1 else "its one checkpoint is evaluated"
    return f"{done} of {len(saves)} checkpoints evaluated"


def failures(saves: Iterable[CheckpointRow], runs: Iterable[TaskRow]) -> str:
    """``2 checkpoints failed, 1 task run failed``; empty when nothing did."""
    states = [row.state for row in saves]
    parts = [
        _counted(states.count("failed"), "checkpoint", "failed"),
        _counted(states.count("missed"), "checkpoint", "missed"),
        _counted(sum(row.state == "failed" for row in runs), "task run", "failed"),
    ]
    return ", ".join(part for part in parts if part)


def _counted(number: int, noun: str, verb: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''} {verb}" if number else ""
