"""Which benchmarks carry signal, so that nobody decides on noise."""

from __future__ import annotations

from html import escape

from recorder.benchmark_health import BenchmarkHealth
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
from recorder.words import score

WORDS = {"signal": ("✓ signal", "better"), "weak": ("◆ weak", "unsure"), "no signal": ("✕ no signal", "worse"),
         "too early": ("too early", "plain")}  # fmt: skip


def health_section(facts: Facts) -> str:
    rows = [(model, one) for model in facts.models for one in facts.health(model)]
    if not rows:
        return quiet("No score yet.")
    several = len({model for model, _ in rows}) > 1
    heads = [
        *([Head("model", text=True)] if several else []),
        Head("task", text=True),
        Head("verdict", text=True),
        Head("level"),
        Head("chance"),
        Head("moved", title="from the first checkpoints to the last, good being up"),
        Head(
            "scatter <span class=pm>per checkpoint</span>", title="one standard deviation from checkpoint to checkpoint"
        ),
        Head("signal <span class=pm>to noise</span>"),
        Head("steady <span class=pm>rank corr.</span>", title="Spearman's correlation of score and training"),
        Head("can be seen <span class=pm>unpaired</span>", title="smallest difference found with a power of 80 %"),
        Head("why", text=True),
    ]
    note = quiet(
        "A benchmark is worth looking at when its score rises steadily, by more than it scatters from checkpoint to "
        "checkpoint, and lies above guessing."
    )
    return note + table("Benchmark health", heads, (_row(model, one, several) for model, one in rows), sortable=True)


def _row(model: str, one: BenchmarkHealth, several: bool) -> str:
    text, kind = WORDS[one.word]
    cells = [
        *([row_head(breakable(model), model)] if several else []),
        row_head(metric_name(one.metric), one.metric),
        cell(badge(text, kind), one.word, text=True),
        cell(score(one.level), one.level),
        cell(NONE if one.chance is None else score(one.chance), "" if one.chance is None else one.chance),
        cell(f"{one.signal:+.3f}".replace("-", "−"), one.signal),
        cell(NONE if one.noise is None else score(one.noise), "" if one.noise is None else one.noise),
        cell(NONE if one.snr is None else f"{one.snr:,.1f}", "" if one.snr is None else one.snr),
        cell(
            NONE if one.monotonicity is None else f"{one.monotonicity:+.2f}".replace("-", "−"),
            "" if one.monotonicity is None else one.monotonicity,
        ),
        cell(
            NONE if one.detectable is None else f"{one.detectable:.3f}",
            "" if one.detectable is None else one.detectable,
        ),
        cell(escape("; ".join(one.reasons)), text=True, kind="error"),
    ]
    return f"<tr{where(model, task_of(one.metric))}>{''.join(cells)}</tr>"
