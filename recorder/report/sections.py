"""The text parts of ``report.html``: sentences and tables, every name and message escaped."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from recorder.leaderboard import LeaderboardRow
from recorder.ledger import CheckpointRow, TaskRow
from recorder.statistics import Z95, Difference
from recorder.verdict import Verdict

AT_WORK = frozenset({"found", "pinned", "converted", "evaluating"})
WORD_CLASS = {"better": "better", "worse": "worse", "cannot tell": "unsure"}


def glance(
    models: Sequence[str],
    checkpoints: Sequence[CheckpointRow],
    tasks: Sequence[TaskRow],
    newest: dict[str, int],
    verdicts: dict[str, Verdict | None],
    best: dict[str, LeaderboardRow],
) -> str:
    """One card per run: a sentence that can be read in ten seconds, the comparison task by task below it."""
    if not models:
        return (
            '<article class="card run"><p class="sentence">Nothing yet: no complete checkpoint has been seen.</p>'
            "</article>"
        )
    cards = []
    for model in models:
        saves = [row for row in checkpoints if row.model == model and not row.superseded]
        runs = [row for row in tasks if row.model == model and not row.superseded]
        verdict = verdicts.get(model)
        kind = WORD_CLASS[verdict.word] if verdict is not None and verdict.overall is not None else "plain"
        sentence = " ".join(
            part
            for part in (
                f"<strong>{escape(model)}</strong> – {_state(saves)}.",
                _newest(newest.get(model), verdict),
                _best(best.get(model), newest.get(model)),
                _failures(saves, runs),
            )
            if part
        )
        details = _by_task(verdict) if verdict is not None and verdict.tasks else ""
        cards.append(f'<article class="card run {kind}"><p class="sentence">{sentence}</p>{details}</article>')
    return "\n".join(cards)


def _state(saves: Sequence[CheckpointRow]) -> str:
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
    return f"all {len(saves)} checkpoints evaluated" if done == len(saves) else f"{done} of {len(saves)} evaluated"


def _newest(newest: int | None, verdict: Verdict | None) -> str:
    if newest is None:
        return "No score yet."
    if verdict is None:
        return f"Newest: iteration {newest:,}; there is no earlier checkpoint to compare it with."
    if verdict.overall is None:
        return (
            f"Newest: iteration {newest:,}; its scores carry no error that would let us compare it with "
            f"{verdict.old_iteration:,}."
        )
    difference = verdict.overall
    paired = all(task.paired for task in verdict.tasks)
    items = f"{difference.n:,} {'paired ' if paired else ''}items"
    count = len(verdict.tasks)
    basis = f"{items} in {count} tasks" if count > 1 else items
    change = f"{points(difference)}, {basis}"
    if difference.verdict == "cannot tell":
        return (
            f'Newest: iteration {newest:,} – <span class="badge">cannot tell</span> from {verdict.old_iteration:,} '
            f"({change}; a change below {difference.detectable * 100:.1f} would likely be missed)."
        )
    return (
        f'Newest: iteration {newest:,} is <span class="badge">{difference.verdict}</span> than '
        f"{verdict.old_iteration:,} by {change}."
    )


def breakable(text: str) -> str:
    """Escaped, and a browser may begin a new line after each ``_``, ``.`` and ``-``."""
    return re.sub(r"([_.-])(?=\w)", r"\1<wbr>", escape(text, quote=False))


def _two_lines(text: str) -> str:
    """``<task>.<metric>``: the metric smaller on a line of its own."""
    task, dot, metric = text.rpartition(".")
    return f"{breakable(task)} <span class=pm>{breakable(metric)}</span>" if dot else breakable(text)


def points(difference: Difference) -> str:
    """``+3.2 percentage points (95 %: +1.1 to +5.3)`` of a score in [0, 1]."""
    return f"{difference.value * 100:+.1f} percentage points (95 %: {difference.low * 100:+.1f} to {difference.high * 100:+.1f})"


def _best(best: LeaderboardRow | None, newest: int | None) -> str:
    if best is None or best.score is None or best.iteration is None or best.iteration == newest:
        return ""
    return f"Highest average so far: {best.score:.3f} at iteration {best.iteration:,}."


def _failures(saves: Sequence[CheckpointRow], runs: Sequence[TaskRow]) -> str:
    lost = sum(row.state in ("failed", "missed") for row in saves)
    failed = sum(row.state == "failed" for row in runs)
    parts = []
    if lost:
        parts.append(f"{lost} checkpoint{'s' if lost > 1 else ''} failed or missed")
    if failed:
        parts.append(f"{failed} task run{'s' if failed > 1 else ''} failed")
    if not parts:
        return '<span class="badge done">No failures.</span>'
    return f'<a href="#states" class="badge alarm">{escape(" and ".join(parts))}</a>'


def _by_task(verdict: Verdict) -> str:
    rows = []
    for task in verdict.tasks:
        difference = task.difference
        word = difference.verdict
        changed = f"{difference.gained} up, {difference.lost} down of {difference.n}" if task.paired else "not paired"
        rows.append(
            f"<tr><th scope=row class=name>{breakable(task.metric)}</th><td>{task.old:.3f}</td><td>{task.new:.3f}</td>"
            f"<td>{difference.value * 100:+.1f} <span class=pm>({difference.low * 100:+.1f} to "
            f"{difference.high * 100:+.1f})</span></td><td>{changed}</td>"
            f'<td class="t {WORD_CLASS[word]}">{word}</td></tr>'
        )
    return (
        f"<details><summary>Task by task: {verdict.new_iteration:,} against {verdict.old_iteration:,}</summary>"
        '<div class="scroll" tabindex=0 role=region aria-label="Comparison by task"><table><thead><tr>'
        f"<th scope=col class=t>task</th><th scope=col>{verdict.old_iteration:,}</th>"
        f"<th scope=col>{verdict.new_iteration:,}</th><th scope=col>percentage points (95 %)</th><th scope=col>items</th>"
        f"<th scope=col class=t>verdict</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="quiet">Verdicts are corrected for the number of tasks (Holm): all of them together err in one case of '
        "twenty at most. Each interval is its task's own.</p>"
        "</details>"
    )


def leaderboard_table(rows: Sequence[LeaderboardRow], columns: Sequence[str], sources: dict[str, str]) -> str:
    """The table with a bar and its 95 % interval in each row; ``columns`` are the metrics shown."""
    if not rows:
        return '<p class="quiet">No score yet.</p>'
    widest = max([(row.score or 0.0) + Z95 * (row.stderr or 0.0) for row in rows] + [1e-9])
    heads = ["rank", "model", "score.± 95 %", "", "iteration", "tokens.billions", *columns]
    head = "".join(f"<th scope=col{' class=t' if text == 'model' else ''}>{_two_lines(text)}</th>" for text in heads)
    return (
        '<div class="card scroll" tabindex=0 role=region aria-label="Leaderboard"><table class="sortable"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(_leaderboard_row(row, columns, sources, widest) for row in rows)}"
        "</tbody></table></div>"
    )


def _leaderboard_row(row: LeaderboardRow, columns: Sequence[str], sources: dict[str, str], widest: float) -> str:
    cells = [_cell(row.rank, "–" if row.rank is None else str(row.rank))]
    tag = ' <span class="tag">baseline</span>' if row.is_baseline else ""
    title = f' title="{escape(sources[row.model])}"' if row.is_baseline and sources.get(row.model) else ""
    name = f'<th scope=row class=name data-v="{escape(row.model)}"{title}>{breakable(row.model)}{tag}</th>'
    cells.append(name)
    cells.append(_value_cell(row.score, row.stderr))
    cells.append(f'<td class=t data-v="{"" if row.score is None else row.score}">{_meter(row, widest)}</td>')
    cells.append(_cell(row.iteration, "–" if row.iteration is None else f"{row.iteration:,}"))
    cells.append(_cell(row.tokens, "–" if row.tokens is None else f"{row.tokens:,.4g}"))
    cells += [_value_cell(row.metrics.get(key), row.stderrs.get(key)) for key in columns]
    return f'<tr class="{"baseline" if row.is_baseline else "own"}">{"".join(cells)}</tr>'


def _meter(row: LeaderboardRow, widest: float) -> str:
    if row.score is None:
        return ""
    width = 100 * max(0.0, row.score) / widest
    whisker = ""
    if row.stderr is not None:
        low = 100 * max(0.0, row.score - Z95 * row.stderr) / widest
        high = 100 * max(0.0, row.score + Z95 * row.stderr) / widest
        whisker = f'<u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>'
    return f'<span class="meter" aria-hidden=true><i style="width:{width:.1f}%"></i>{whisker}</span>'


def _cell(value: float | int | None, text: str) -> str:
    return f'<td data-v="{"" if value is None else value}">{text}</td>'


def _value_cell(value: float | None, stderr: float | None) -> str:
    if value is None:
        return _cell(None, "–")
    error = "" if stderr is None else f' <span class="pm">± {Z95 * stderr:.3f}</span>'
    return _cell(value, f"{value:.3f}{error}")


def states_table(checkpoints: Sequence[CheckpointRow], tasks: Sequence[TaskRow], report: Path) -> str:
    """Checkpoints × tasks, newest first, with the last errors and links to their logs."""
    saves = [row for row in checkpoints if not row.superseded]
    if not saves:
        return '<p class="quiet">No complete checkpoint has been seen yet.</p>'
    runs: dict[tuple[str, int], dict[str, TaskRow]] = defaultdict(dict)
    for run in tasks:
        if not run.superseded:
            runs[run.model, run.iteration][run.task] = run  # of several versions the one changed last stays
    names = sorted({name for of_checkpoint in runs.values() for name in of_checkpoint})
    several = len({row.model for row in saves}) > 1
    heads = [*(["model"] if several else []), "iteration", "state", *names, "last error"]
    head = "".join(f"<th scope=col class=t>{breakable(text)}</th>" for text in heads)
    body = []
    for save in sorted(saves, key=lambda row: (row.model, -row.iteration)):
        mine = runs[save.model, save.iteration]
        cells = [f"<th scope=row class=name>{breakable(save.model)}</th>"] if several else []
        cells.append(f"<th scope=row class=t>{save.iteration:,}</th>")
        cells.append(f'<td class="t s-{escape(save.state)}">{escape(save.state)}</td>')
        cells += [_task_cell(mine.get(name), report) for name in names]
        cells.append(f'<td class="error">{_errors(save, mine.values(), report)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    superseded = len(checkpoints) - len(saves)
    note = f'<p class="quiet">{superseded} earlier saves of these iterations are superseded.</p>' if superseded else ""
    return (
        '<div class="card scroll" tabindex=0 role=region aria-label="Checkpoints and tasks"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def _task_cell(run: TaskRow | None, report: Path) -> str:
    if run is None:
        return '<td class="t s-none">–</td>'
    text = escape(run.state)
    if run.log and run.state in ("failed", "running"):
        text = f'<a href="{_link(run.log, report)}">{text}</a>'
    return f'<td class="t s-{escape(run.state)}">{text}</td>'


def _errors(save: CheckpointRow, runs: Iterable[TaskRow], report: Path) -> str:
    failed = [run for run in runs if run.error]
    parts = []
    if save.error and not failed:
        parts.append(f"<p>{escape(_short(save.error))}</p>")
    for run in failed:
        log = f' <a href="{_link(run.log, report)}">log</a>' if run.log else ""
        parts.append(f"<p><strong>{escape(run.task)}</strong>: {escape(_short(run.error or ''))}{log}</p>")
    return "".join(parts)


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _link(log: str, report: Path) -> str:
    """A relative link, so that the work directory can be copied elsewhere as a whole."""
    relative = os.path.relpath(Path(log).absolute(), report.absolute().parent)
    return escape(quote(Path(relative).as_posix()))
