"""``report.html``: one self-contained page for a person who has 30 seconds. It asks no network for anything."""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from recorder.baselines import Baseline
from recorder.board import Board
from recorder.files import write_atomic
from recorder.leaderboard import LeaderboardRow, is_share, metric_key
from recorder.ledger import Ledger, ScoreRow
from recorder.report.facts import Facts
from recorder.report.sections import glance, leaderboard_table, states_table
from recorder.statistics import Z95, score_interval
from recorder.verdict import newest_verdict

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def build_report(ledger: Ledger, output: Path, *, title: str, baselines: Sequence[Baseline] = ()) -> None:
    """Write the report of everything in ``ledger`` to ``output``, atomically."""
    write_report(Facts(ledger, baselines), output, title=title)


def write_report(facts: Facts, output: Path, *, title: str) -> None:
    """Write the report to ``output``, atomically."""
    output = Path(output)
    scores, board, checkpoints, tasks, models = facts.scores, facts.board, facts.checkpoints, facts.tasks, facts.models
    baselines, newest, every, best, main = facts.baselines, facts.newest, facts.every, facts.best, facts.main
    current, ledger = len(facts.checkpoints), facts.ledger
    wanted = set(board.choice.metrics) or facts.shown_first or set(board.columns)
    shown = [key for key in board.columns if key in wanted]
    sources = {baseline.name: baseline.source for baseline in baselines}
    charts = _charts(scores, baselines, every, models, main)
    page = {
        "title": escape(title),
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "js": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "plotly": _plotly(),
        "subtitle": f"{_count(len(models), 'run')}, {_count(current, 'checkpoint')}, "
        f"{_count(len(baselines), 'baseline')} · written {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
        "glance": glance(
            models,
            checkpoints,
            tasks,
            {model: iteration for model, iteration in newest.items() if iteration is not None},
            {model: newest_verdict(ledger, scores, model, baselines) for model in models},
            best,
        ),
        "curves_note": "Bars are 95 % intervals of each score; dashed lines are baselines, dotted ones are chance. "
        "Two neighbours whose bars overlap may still differ: the verdict above compares item by item.",
        "leaderboard_note": _leaderboard_note(board),
        "leaderboard": leaderboard_table(board.rows, shown, sources),
        "states": states_table(checkpoints, tasks, output),
        "footer": "Made by recorder/report.py from the ledger. No network is used.",
        "data": _embedded(
            {
                "models": models,
                "charts": charts,
                "has_tokens": bool(scores) and all(row.tokens is not None for row in scores),
            }
        ),
    }
    template = (TEMPLATES / "report.html").read_text(encoding="utf-8")
    write_atomic(output, re.sub(r"\{\{(\w+)\}\}", lambda found: page[found[1]], template))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # heavy, and only needed here

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the strings in it hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _first_metrics(scores: Sequence[ScoreRow]) -> set[str]:
    """The first metric of each task: what is shown of a task that cannot enter the average."""
    return {metric_key(row) for row in scores if row.position == 0}


def _leaderboard_note(board: Board) -> str:
    averaged = next((row.averaged for row in board.rows if row.averaged), ())
    left_out = f" Left out as asked: {escape(', '.join(board.choice.excluded))}." if board.choice.excluded else ""
    if not averaged:
        return f"No task is shared by all models yet, so there is no score to rank by.{left_out}"
    listed = ", ".join(escape(key) for key in averaged)
    noun = "the one metric" if len(averaged) == 1 else f"the {len(averaged)} metrics"
    return (
        f"Score: mean over {noun} that all ranked rows share ({listed}), each corrected for chance where the level of "
        "guessing is known: 0 is guessing, 1 is perfect. ± is half of the 95 % interval; published baselines often "
        f"come without one.{left_out}"
    )


def _charts(
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
    every: Sequence[LeaderboardRow],
    models: Sequence[str],
    main: dict[str, str],
) -> list[dict[str, Any]]:
    """The average first, then each task's main metric, then the other metrics."""
    by_metric: dict[str, dict[str, list[ScoreRow]]] = defaultdict(lambda: defaultdict(list))
    for row in scores:
        by_metric[metric_key(row)][row.model].append(row)
    first = set(main.values()) | {key for key in _first_metrics(scores) if key.rsplit(".", 1)[0] not in main}
    charts = [chart for chart in [_average_chart(every, models)] if chart is not None]
    for key in sorted(by_metric, key=lambda key: (key not in first, key)):
        of_metric = by_metric[key]
        rows = [row for of_model in of_metric.values() for row in of_model]
        chance = next((row.chance for row in rows if row.chance is not None), None)
        charts.append(
            {
                "title": key,
                "note": "" if rows[0].higher_is_better else "lower is better",
                "unit": _unit(rows),
                "main": key in first,
                "wide": False,
                "chance": chance,
                "summary": _summary(key, rows[-1].value, rows[-1].iteration),
                "series": [_series(models.index(model), of_metric[model]) for model in sorted(of_metric)],
                "baselines": [{"name": b.name, "value": b.values[key]} for b in baselines if key in b.values],
            }
        )
    return charts


def _unit(rows: Sequence[ScoreRow]) -> str:
    return f"{rows[0].metric}, 0 to 1" if all(is_share(row.value) for row in rows) else rows[0].metric


def _summary(title: str, value: float, iteration: int | None) -> str:
    return f"{title}: curve over training, {value:.3g} at iteration {iteration}"


def _series(model: int, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    intervals = [score_interval(row.value, row.stderr, row.n) for row in rows]
    return {
        "model": model,
        "iteration": [row.iteration for row in rows],
        "tokens": [row.tokens for row in rows],
        "value": [_short(row.value) for row in rows],
        "low": [None if interval is None else _short(interval[0]) for interval in intervals],
        "high": [None if interval is None else _short(interval[1]) for interval in intervals],
        "n": [row.n for row in rows],
    }


def _average_chart(every: Sequence[LeaderboardRow], models: Sequence[str]) -> dict[str, Any] | None:
    """The leaderboard's score over training; only worth a chart when it averages at least two tasks."""
    scored = sorted((row for row in every if row.score is not None), key=lambda row: row.iteration or 0)
    own = [row for row in scored if not row.is_baseline]
    if not own or len(own[0].averaged) < 2:
        return None
    series = []
    for model in models:
        rows = [row for row in own if row.model == model]
        values = [row.score or 0.0 for row in rows]
        errors = [None if row.stderr is None else Z95 * row.stderr for row in rows]
        series.append(
            {
                "model": models.index(model),
                "iteration": [row.iteration for row in rows],
                "tokens": [row.tokens for row in rows],
                "value": [_short(value) for value in values],
                "low": [None if e is None else _short(v - e) for v, e in zip(values, errors, strict=True)],
                "high": [None if e is None else _short(v + e) for v, e in zip(values, errors, strict=True)],
                "n": [None] * len(rows),
            }
        )
    count = len(own[0].averaged)
    return {
        "title": f"Average of {count} tasks",
        "note": "corrected for chance: 0 is guessing, 1 is perfect",
        "unit": "score, 0 to 1",
        "main": True,
        "wide": True,
        "chance": None,
        "summary": _summary("Average", own[-1].score or 0.0, own[-1].iteration),
        "series": [one for one in series if one["value"]],
        "baselines": [{"name": row.model, "value": row.score} for row in scored if row.is_baseline],
    }


def _short(value: float) -> float:
    """Six significant digits: what a picture can show, in half the bytes."""
    return float(f"{value:.6g}") if math.isfinite(value) else value
