"""The radar of the five dimensions: what it shows of a ledger, where it is left out, and that it is well-formed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace
from typing import Any

import pytest

from recorder.ledger import ScoreRow
from recorder.report.radar import DIMENSIONS, Outline, radar, radar_section


def row(model: str, iteration: int, task: str, value: float, *, position: int = 0) -> ScoreRow:
    metric = "acc" if position == 0 else "acc_macro"
    rest = {"tokens": None, "task_version": "v", "stderr": 0.02, "n": 400, "higher_is_better": True, "source": "icl"}
    more = {"superseded": False, "recorded_at": 0.0, "chance": None, "fingerprint": "f", "position": position}
    return ScoreRow(model=model, iteration=iteration, task=task, metric=metric, value=value, **rest, **more)


def facts(rows: list[ScoreRow], baselines: list[Any] | None = None) -> Any:
    return SimpleNamespace(models=sorted({row.model for row in rows}), scores=rows, baselines=baselines or [])


def drawing(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def test_the_newest_checkpoint_of_each_model_and_where_it_began() -> None:
    rows = [
        row(model, at, name, 0.1 * place + at / 1000)
        for model in ("a<b", "gpt")
        for at in (100, 200, 300)
        for place, name in enumerate(DIMENSIONS)
    ]
    rows += [row("gpt", 300, DIMENSIONS[0], 0.99, position=1), row("gpt", 400, DIMENSIONS[0], 0.9)]  # too few of 400
    baseline = SimpleNamespace(name="other", values={f"{name}.acc": 0.5 for name in DIMENSIONS[:3]})
    html = radar_section(facts(rows, [baseline]))
    svg = drawing(html)
    outlines = [one for one in svg.findall("polygon") if one.get("stroke", "").startswith("var(--c")]
    assert len(outlines) == 5
    assert [bool(one.get("stroke-dasharray")) for one in outlines] == [False, False, True, True, True]
    assert len(svg.findall("circle")) == 10
    titles = [one.findtext("title") for one in svg.findall("circle")]
    assert titles[0] == "a<b · 300, inference_ability: 0.3 (0.261 to 0.339)"
    assert "gpt · 100" in html and "other" in html and "a<b" not in html.replace("a&lt;b", "")


def test_places_are_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = dict(zip(DIMENSIONS, (1.0, 0.5, 0.0, 0.25, 0.75), strict=True))
    svg = drawing(radar([Outline("m", {name: (value, None) for name, value in values.items()})]))
    places = [(float(one.get("cx", 0)), float(one.get("cy", 0))) for one in svg.findall("circle")]
    first = svg.find("line")
    assert first is not None
    centre = (float(first.get("x1", 0)), float(first.get("y1", 0)))
    for (x, y), value in zip(places, values.values(), strict=True):
        away = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) ** 0.5
        assert away == pytest.approx(150 * value, abs=0.1)
    assert places[0][0] == pytest.approx(centre[0]) and places[0][1] < centre[1]  # the first axis points up


def test_low_scores_get_a_scale_of_their_own() -> None:
    svg = drawing(radar([Outline("m", dict.fromkeys(DIMENSIONS, (0.03, (0.01, 0.04))))]))
    assert "0.05" in [one.text for one in svg.findall("text")]


def test_nothing_where_the_dimensions_were_not_evaluated() -> None:
    assert radar_section(facts([row("gpt", 100, name, 0.5) for name in (*DIMENSIONS[:2], "hellaswag")])) == ""
    assert radar_section(facts([])) == ""
