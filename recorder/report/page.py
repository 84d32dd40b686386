"""``report.html``, put together: sections one after the other, one file, no network."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from recorder.baselines import Baseline
from recorder.files import write_atomic
from recorder.ledger import Ledger
from recorder.report.board_table import leaderboard_section
from recorder.report.charts import all_charts
from recorder.report.costs import costs_section
from recorder.report.facts import Facts
from recorder.report.flips import flips_data, flips_section
from recorder.report.glance import glance
from recorder.report.health import health_section
from recorder.report.markup import quiet
from recorder.report.outlook import outlook_section
from recorder.report.radar import radar_section
from recorder.report.states import states_section
from recorder.report.training import training_section

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
SCRIPTS = ("page.js", "charts.js", "items.js")


class Section(NamedTuple):
    """A part of the page below the curves. ``build`` gives its HTML, everything in it escaped, or nothing: then the
    section is left out. ``after`` is HTML that the scripts fill."""

    name: str
    title: str
    build: Callable[[Facts, Path], str]
    after: str = ""


# Another view of a run is one more line here (docs/report.md).
SECTIONS: tuple[Section, ...] = (
    Section("leaderboard", "Leaderboard", lambda facts, report: leaderboard_section(facts)),
    Section("radar", "Five dimensions", lambda facts, report: radar_section(facts)),
    Section("outlook", "Worth going on?", lambda facts, report: outlook_section(facts)),
    Section("health", "Benchmarks", lambda facts, report: health_section(facts)),
    Section(
        "items",
        "Items",
        lambda facts, report: flips_section(facts.trajectories) if facts.own else "",
        after='<div id="browser"></div>',
    ),
    Section("costs", "Cost", lambda facts, report: costs_section(facts)),
    Section("states", "Checkpoints", lambda facts, report: states_section(facts, report)),
)


def build_report(ledger: Ledger, output: Path, *, title: str, baselines: Sequence[Baseline] = ()) -> None:
    """Write the report of everything in ``ledger`` to ``output``, atomically."""
    write_report(Facts(ledger, baselines), output, title=title)


def write_report(facts: Facts, output: Path, *, title: str) -> None:
    """Write the report to ``output``, atomically. A section that cannot be made says so; the others are there."""
    output = Path(output)
    sections = [(one, _guarded(one.title, partial(one.build, facts, output))) for one in SECTIONS]
    shown = [(one, html) for one, html in sections if html]
    page = {
        "title": escape(title),
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "js": "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "plotly": _plotly(),
        "subtitle": _subtitle(facts),
        "nav": "".join(f'<a href="#{one.name}">{escape(one.title)}</a>' for one, _ in shown),
        "glance": _guarded("At a glance", partial(glance, facts))
        + _guarded("Training", partial(training_section, output.parent)),
        "sections": "\n".join(_section(one, html) for one, html in shown),
        "data": _embedded(_data(facts, output)),
    }
    template = (TEMPLATES / "report.html").read_text(encoding="utf-8")
    write_atomic(output, re.sub(r"\{\{(\w+)\}\}", lambda found: page[found[1]], template))


def _guarded(title: str, build: Callable[[], str]) -> str:
    try:
        return build()
    except Exception as error:  # one odd number in one table must not cost the person all the others
        logger.exception("report: the section '%s' could not be made", title)
        return quiet(f"This section could not be made: {escape(type(error).__name__)}: {escape(str(error))}")


def _section(section: Section, html: str) -> str:
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
        f'<h2 id="{section.name}-title">{escape(section.title)}</h2>{html}{section.after}</section>'
    )


def _subtitle(facts: Facts) -> str:
    now = time.time()
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    published = {(row.model, row.iteration) for row in facts.scores if row.model not in facts.own}
    levels = [one for one in facts.baselines if one.name not in facts.models]
    parts = [_count(len(facts.models), "model"), _count(len(facts.checkpoints) + len(published), "checkpoint")]
    if levels:
        parts.append(_count(len(levels), "baseline"))
    return f'{" · ".join(parts)} · written <time data-at="{now:.0f}">{escape(written)}</time>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _data(facts: Facts, output: Path) -> dict[str, Any]:
    charts: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    try:
        charts = all_charts(facts)
        items = flips_data(facts.trajectories, output)
    except Exception:
        logger.exception("report: the curves could not be made")
    return {
        "models": facts.models,
        "charts": charts,
        "items": items,
        "has_tokens": bool(facts.scores) and all(row.tokens is not None for row in facts.scores),
    }


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # heavy, and only needed here

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the strings in it hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
