"""Is it worth going on? What the next tokens should bring, task by task, and when the baselines are reached."""

from __future__ import annotations

from html import escape

from recorder import words
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
from recorder.trend import Outlook, Reach, Worth

AVERAGED = "average <span class=pm>of the tasks with signal</span>"
KIND = {"worth it": "better", "not worth it": "unsure", "falling": "worse"}
WORDS = {
    "worth it": "▲ worth it",
    "not worth it": "◆ below what shows",
    "falling": "▼ falling",
    "cannot tell": "◆ cannot tell",
}


def outlook_section(facts: Facts) -> str:
    made = [(model, facts.worth(model)) for model in facts.models]
    known = [(model, one) for model, one in made if one is not None]
    if not any(outlook.gain is not None for _, one in known for outlook in _all(one)):
        return quiet("A curve needs five evaluated checkpoints; until then nobody can say what more training brings.")
    note = quiet(
        "A saturating power law is fitted to each course, many times over for checkpoints and items drawn anew: the "
        "interval is where 90 % of the fits end. It holds while the learning rate goes on as it does. A gain below what "
        "a benchmark can detect will not be seen, even where it is real."
    )
    return note + "".join(_of_model(facts, model, one, len(known) > 1) for model, one in known)


def _all(worth: Worth) -> list[Outlook]:
    return [*([worth.average] if worth.average is not None else []), *worth.tasks]


def _of_model(facts: Facts, model: str, worth: Worth, several: bool) -> str:
    rows = [one for one in _all(worth) if one.gain is not None]
    if not rows:
        return ""
    with_tokens = rows[0].unit == "tokens"
    ahead = f"{words.tokens(rows[0].ahead)} tokens" if with_tokens else f"{rows[0].ahead:,.0f} iterations"
    unit = "tokens" if with_tokens else "iterations"
    names = sorted({reach.baseline for one in rows for reach in one.reaches})
    heads = [
        Head("task", text=True),
        Head("now"),
        Head(f"expected gain <span class=pm>next {escape(ahead)}</span>"),
        Head("can be seen <span class=pm>from</span>", title="smallest difference found with a power of 80 %"),
        Head("verdict", text=True),
        *(Head(f"reaches {breakable(name)} <span class=pm>at {unit}</span>") for name in names),
    ]
    title = f"<h3>{breakable(model)}</h3>" if several else ""
    shown = (_row(model, one, names, one.metric == "average" or one.metric in facts.shares) for one in rows)
    body = table(f"What more training of {model} should bring", heads, shown)
    sentence = words.outlook(worth)
    return f'<div class="block"{where(model)}>{title}<p>{escape(sentence[0].upper() + sentence[1:])}.</p>{body}</div>'


def _row(model: str, one: Outlook, names: list[str], share: bool) -> str:
    assert one.gain is not None and one.low is not None and one.high is not None

    def shown(value: float) -> str:
        return words.signed(value * 100) if share else f"{value:+.3g}".replace("-", "−")

    gain = f"{shown(one.gain)} <span class=pm>{shown(one.low)} to {shown(one.high)}</span>"
    seen = NONE if one.detectable is None else f"{one.detectable * 100:.1f}" if share else f"{one.detectable:.3g}"
    reaches = {reach.baseline: reach for reach in one.reaches}
    name = AVERAGED if one.metric == "average" else metric_name(one.metric)
    return (
        f"<tr{where(model, task_of(one.metric) if one.metric != 'average' else '')}>{row_head(name)}"
        f"{cell(words.score(one.value))}{cell(gain)}{cell(seen)}"
        f"{cell(badge(WORDS.get(one.word, one.word), KIND.get(one.word, 'plain')), text=True)}"
        f"{''.join(cell(_reach(reaches.get(name), one.unit == 'tokens')) for name in names)}</tr>"
    )


def _reach(reach: Reach | None, with_tokens: bool) -> str:
    if reach is None:
        return NONE
    if reach.reached:
        return "reached"
    if reach.at is None:
        return "not in sight"

    def shown(x: float) -> str:
        return words.tokens(x) if with_tokens else f"{x:,.0f}"

    high = shown(reach.high) if reach.high is not None else "never"
    low = shown(reach.low) if reach.low is not None else "?"
    return f"{shown(reach.at)} <span class=pm>{low} to {high}</span>"
