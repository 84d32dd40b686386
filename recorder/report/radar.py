"""The five dimensions as a radar: the newest checkpoint of each model, where a run began, and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from recorder.ledger import ScoreRow
from recorder.report.markup import quiet
from recorder.statistics import score_interval

if TYPE_CHECKING:
    from recorder.report.facts import Facts

DIMENSIONS = (
    "inference_ability",
    "reading_comprehension",
    "chinese_language_skill",
    "command_compliance",
    "innovation_capacity",
)
FEWEST = 3  # corners of an area
_MOST = 8  # outlines that an eye can tell apart, and colours
_RADIUS, _WIDTH, _HEIGHT = 150.0, 680, 370
_CENTRE = (340.0, 195.0)
_TOPS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Outline:
    """``points``: dimension -> (value, 95 % interval or nothing)."""

    name: str
    points: Mapping[str, tuple[float, tuple[float, float] | None]]
    dashed: bool = False
    colour: int = 0


def radar_section(facts: Facts) -> str:
    """Nothing where fewer than three of the dimensions have been scored."""
    outlines = _outlines(facts)
    if not outlines:
        return ""
    note = quiet(
        "Newest checkpoint of each model; dashed: where a run began, and baselines. Bars along the axes are 95 % "
        "intervals. BLEU and accuracy are different things: compare along an axis, not the axes with each other."
    )
    return note + radar(outlines)


def radar(outlines: Sequence[Outline]) -> str:
    """One SVG, of itself: no script is needed. The axes go from 0 to a round number above all that is shown."""
    highest = max(interval[1] if interval else value for one in outlines for value, interval in one.points.values())
    top = next((top for top in _TOPS if highest <= top), 1.0)
    body = [*_web(top)]
    for outline in outlines:
        body += _drawn(outline, top)
    said = "; ".join(
        f"{one.name}: " + ", ".join(f"{name} {value:.3g}" for name, (value, _) in one.points.items())
        for one in outlines
    )
    return (
        f'<svg class="radar" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}" '
        f'style="width:100%;max-width:{_WIDTH}px;height:auto;font:13px system-ui,sans-serif">{"".join(body)}</svg>'
        f'<p style="display:flex;flex-wrap:wrap;gap:4px 18px;margin:4px 0">{"".join(map(_legend, outlines))}</p>'
    )


def _outlines(facts: Facts) -> list[Outline]:
    runs: list[Outline] = []
    others: list[Outline] = []
    for model in facts.models:
        rows = [row for row in facts.scores if row.model == model and row.task in DIMENSIONS and row.position == 0]
        iterations = sorted({row.iteration for row in rows})
        whole = [at for at in iterations if len({row.task for row in rows if row.iteration == at}) >= FEWEST]
        if not whole:
            continue
        colour = len(runs)
        runs.append(Outline(f"{model} · {whole[-1]:,}", _points(rows, whole[-1]), colour=colour))
        if len(whole) > 1:
            others.append(Outline(f"{model} · {whole[0]:,}", _points(rows, whole[0]), dashed=True, colour=colour))
    metrics = {row.task: f"{row.task}.{row.metric}" for row in facts.scores if row.position == 0}
    for baseline in facts.baselines:
        keys = {name: metrics.get(name, "") for name in DIMENSIONS}
        known = {name: (baseline.values[key], None) for name, key in keys.items() if key in baseline.values}
        if len(known) >= FEWEST:
            others.append(Outline(baseline.name, known, dashed=True, colour=len(runs) + len(others)))
    return [*runs, *others][:_MOST]


def _points(rows: Sequence[ScoreRow], iteration: int) -> dict[str, tuple[float, tuple[float, float] | None]]:
    found = {row.task: row for row in rows if row.iteration == iteration}
    return {
        name: (found[name].value, score_interval(found[name].value, found[name].stderr, found[name].n))
        for name in DIMENSIONS
        if name in found
    }


def _at(dimension: str, share: float) -> tuple[float, float]:
    """The place on a dimension's axis, ``share`` of its length from the middle."""
    angle = 2 * math.pi * DIMENSIONS.index(dimension) / len(DIMENSIONS)
    return _CENTRE[0] + _RADIUS * share * math.sin(angle), _CENTRE[1] - _RADIUS * share * math.cos(angle)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _web(top: float) -> list[str]:
    parts = []
    for ring in range(1, 5):
        places = _path([_at(name, ring / 4) for name in DIMENSIONS])
        parts.append(f'<polygon points="{places}" fill="none" stroke="var(--line)"/>')
        x, y = _at(DIMENSIONS[0], ring / 4)
        parts.append(
            f'<text x="{x + 5:.1f}" y="{y + 4:.1f}" fill="var(--quiet)" font-size="11">{top * ring / 4:g}</text>'
        )
    for name in DIMENSIONS:
        (x, y), (a, b) = _at(name, 1), _at(name, 1.13)
        anchor = "middle" if abs(a - _CENTRE[0]) < 1 else "start" if a > _CENTRE[0] else "end"
        line = f'<line x1="{_CENTRE[0]}" y1="{_CENTRE[1]}" x2="{x:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        parts.append(f'{line}<text x="{a:.1f}" y="{b + 4:.1f}" text-anchor="{anchor}" fill="var(--ink)">{name}</text>')
    return parts


def _drawn(outline: Outline, top: float) -> list[str]:
    colour = f"var(--c{outline.colour % _MOST})"
    shares = {name: min(max(value / top, 0.0), 1.0) for name, (value, _) in outline.points.items()}
    places = _path([_at(name, share) for name, share in shares.items()])
    look = 'fill="none" stroke-dasharray="5 4"' if outline.dashed else f'fill="{colour}" fill-opacity=".12"'
    parts = [f'<polygon points="{places}" {look} stroke="{colour}" stroke-width="2"/>']
    if outline.dashed:
        return parts
    for name, (value, interval) in outline.points.items():
        if interval is not None:
            (a, b), (c, d) = (_at(name, min(max(bound / top, 0.0), 1.0)) for bound in interval)
            parts.append(
                f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}" stroke-width="3"/>'
            )
        x, y = _at(name, shares[name])
        bounds = "" if interval is None else f" ({max(interval[0], 0.0):.3g} to {interval[1]:.3g})"
        title = f"{escape(outline.name)}, {name}: {value:.3g}{bounds}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"><title>{title}</title></circle>')
    return parts


def _legend(outline: Outline) -> str:
    line = "dashed" if outline.dashed else "solid"
    mark = f"border-top:3px {line} var(--c{outline.colour % _MOST});display:inline-block;width:22px;margin-right:6px"
    return f'<span><span style="{mark};vertical-align:middle"></span>{escape(outline.name)}</span>'
