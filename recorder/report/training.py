"""The training curve above the evaluation curves, and what the training log says of the run's health.

Drawn from ``<work_dir>/<model>/training_log.json``, which the daemon writes (``autoeval.diagnosis.follow``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from recorder.report.markup import badge, quiet
from recorder.untrusted import parse_json

logger = logging.getLogger(__name__)

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 240, 56, 28
_STYLE = {"Low": "better", "Medium": "unsure", "High": "worse"}


def training_section(work_dir: Path) -> str:
    """HTML of all training logs of the work directory, nothing when there is none."""
    told = []
    for path in sorted(work_dir.glob("*/training_log.json")):
        try:
            told.append(_run(parse_json(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: not drawn: %s", path, error)
    if not told:
        return ""
    return f'<section id="training" aria-labelledby="training-title"><h2 id="training-title">Training</h2>{"".join(told)}</section>'


def _run(content: dict[str, Any]) -> str:
    diagnosis = content["diagnosis"]
    risks = {**diagnosis["current_risks"]}
    risks |= {risk: one["level"] for risk, one in diagnosis["other_risks"].items() if one["level"] != "Low"}
    badges = " ".join(badge(f"{risk.replace('_', ' ')}: {level}", _STYLE[level]) for risk, level in risks.items())
    evidence = [one for found in diagnosis["evidence"].values() for one in found]
    evidence += [one for risk in diagnosis["other_risks"].values() for one in risk["evidence"] if one["level"] != "Low"]
    reasons = "".join(f"<li>{escape(one['text'])}</li>" for one in evidence)
    return (
        f"<h3>{escape(content['model'])}</h3><p>{badges}</p>{_chart(content)}"
        f"{f'<ul>{reasons}</ul>' if reasons else ''}{quiet(escape(content['log']))}"
    )


def _chart(content: dict[str, Any]) -> str:
    train = [(x, y) for x, y, *_ in content["train"]]
    validation = {name: [(x, y) for x, y in points] for name, points in content["validation"].items()}
    everything = [*train, *(point for points in validation.values() for point in points)]
    if len(everything) < 2:
        return quiet("No loss in the log yet.")
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    # The first steep fall would press all that follows to the ground: the top is where 5 % of the run lie above.
    heights = sorted(y for _, y in everything)
    bottom, top = heights[0], heights[min(len(heights) - 1, math.ceil(0.95 * len(heights)))]
    top = top if top > bottom else bottom + 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - left) / ((right - left) or 1.0) * (WIDTH - LEFT - 8)
        down = 8 + (1 - (min(y, top) - bottom) / (top - bottom)) * (HEIGHT - BOTTOM - 8)
        return f"{across:.1f},{down:.1f}"

    def line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
        joined = " ".join(place(x, y) for x, y in points)
        dots = "".join(_dot(place(x, y), colour) for x, y in points) if len(points) <= 100 else ""
        return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{joined}"/>{dots}'

    drawn = line(train, "currentColor", 1.2)
    for number, points in enumerate(validation.values()):
        drawn += line(points, f"hsl({(25 + 70 * number) % 360} 80% 45%)", 2)
    names = ["training loss", *(f"loss on {name}" for name in validation)]
    label = f"{', '.join(names)} over the {content['axis']}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="{escape(label)}">'
        f"{drawn}{_axes(left, right, bottom, top)}</svg>{quiet(escape(label))}"
    )


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'


def _axes(left: float, right: float, bottom: float, top: float) -> str:
    def text(x: float, y: float, anchor: str, value: float) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" fill="currentColor">{value:.6g}</text>'

    ground = HEIGHT - BOTTOM
    return (
        f'<path d="M{LEFT} 8V{ground}H{WIDTH - 8}" fill="none" stroke="currentColor" stroke-opacity=".4"/>'
        + text(LEFT - 6, 14, "end", round(top, 3))
        + text(LEFT - 6, ground, "end", round(bottom, 3))
        + text(LEFT, HEIGHT - 8, "start", left)
        + text(WIDTH - 8, HEIGHT - 8, "end", right)
    )
