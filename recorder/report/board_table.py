"""The leaderboard as a table, with a bar and its interval in each row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from recorder import words
from recorder.leaderboard import LeaderboardRow
from recorder.report.facts import Facts
from recorder.report.markup import (
    NONE,
    Head,
    badge,
    breakable,
    cell,
    metric_name,
    quiet,
    row_head,
    table,
    task_of,
    where,
)
from recorder.statistics import Z95, score_interval, with_spread


def leaderboard_section(facts: Facts) -> str:
    board = facts.board
    if not board.rows:
        return quiet("No score yet.")
    wanted = set(board.choice.metrics) or facts.shown_first or set(board.columns)
    columns = [key for key in board.columns if key in wanted]
    sources = {baseline.name: baseline.source for baseline in facts.baselines}
    items = {(row.model, row.iteration, f"{row.task}.{row.metric}"): row.n for row in facts.scores}
    widest = max([(row.score or 0.0) + Z95 * (row.stderr or 0.0) for row in board.rows] + [1e-9])
    heads = [
        Head("rank"),
        Head("model", text=True),
        Head("score <span class=pm>± 95 %</span>"),
        Head("", text=True),
        Head("iteration"),
        Head("tokens"),
        *(Head(metric_name(key), task=task_of(key)) for key in columns),
    ]
    rows = (_row(row, columns, sources, widest, items) for row in board.rows)
    return _note(facts) + table("Leaderboard", heads, rows, sortable=True)


def _note(facts: Facts) -> str:
    averaged = next((row.averaged for row in facts.board.rows if row.averaged), ())
    excluded = facts.board.choice.excluded
    left_out = f" Left out as asked: {escape(', '.join(excluded))}." if excluded else ""
    if not averaged:
        return quiet(f"No task is shared by all models yet, so there is no score to rank by.{left_out}")
    listed = ", ".join(escape(key) for key in averaged)
    noun = "the one metric" if len(averaged) == 1 else f"the {len(averaged)} metrics"
    return quiet(
        f"Score: mean over {noun} that all ranked rows share, each corrected for chance where the level of guessing is "
        "known: 0 is guessing, 1 is perfect. ± is half of the 95 % interval; published baselines often come without "
        f"one. Models share a rank when their difference is inside the noise.{left_out}"
    ) + (f"<details><summary>Which metrics</summary>{quiet(listed)}</details>" if len(averaged) > 1 else "")


def _row(
    row: LeaderboardRow,
    columns: Sequence[str],
    sources: dict[str, str],
    widest: float,
    items: dict[tuple[str, int, str], int],
) -> str:
    tag = f" {badge('baseline', 'tag')}" if row.is_baseline else ""
    cells = [
        cell(NONE if row.rank is None else str(row.rank), "" if row.rank is None else row.rank),
        row_head(breakable(row.model) + tag, row.model, sources.get(row.model, "") if row.is_baseline else ""),
        value_cell(row.score, row.stderr),
        cell(_meter(row, widest), "" if row.score is None else row.score, text=True),
        cell(NONE if row.iteration is None else f"{row.iteration:,}", "" if row.iteration is None else row.iteration),
        cell(NONE if row.tokens is None else words.tokens(row.tokens), "" if row.tokens is None else row.tokens),
    ]
    for key in columns:
        n = items.get((row.model, row.iteration or 0, key), 0)
        cells.append(value_cell(row.metrics.get(key), row.stderrs.get(key), n))
    return f'<tr class="{"baseline" if row.is_baseline else "own"}"{where(row.model)}>{"".join(cells)}</tr>'


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


def value_cell(value: float | None, stderr: float | None, n: int = 0) -> str:
    """A number with half of its 95 % interval, of the same interval that the curves show."""
    if value is None:
        return cell(NONE, "")
    shown = f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    half = half_width(value, stderr, n)
    if half is not None:
        shown += f' <span class="pm">± {half:.3f}</span>'
    return cell(shown, f"{value:.9g}")


def half_width(value: float, stderr: float | None, n: int) -> float | None:
    """Half of the 95 % interval; of one that is not symmetric, the larger side."""
    if stderr is None:
        return None
    interval = score_interval(value, stderr, n) if n else None
    if interval is None:
        spread = with_spread(value, stderr, n)
        return None if not spread else Z95 * spread
    return max(value - interval[0], interval[1] - value)
