"""Pieces of HTML. Whatever comes from a configuration, a ledger or a file goes through ``escape`` here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

NONE = '<span class="none">–</span>'
SYMBOLS = {"better": "▲", "worse": "▼", "cannot tell": "◆"}  # beside colour: one in twelve men sees no red or green
WORD_CLASS = {"better": "better", "worse": "worse", "cannot tell": "unsure"}


def breakable(text: str) -> str:
    """Escaped, and a browser may begin a new line after each ``_``, ``.`` and ``-``."""
    return re.sub(r"([_.-])(?=\w)", r"\1<wbr>", escape(text, quote=False))


def metric_name(text: str) -> str:
    """``<task>.<metric>``: the metric smaller, on a line of its own where there is no room."""
    task, dot, metric = text.rpartition(".")
    return f"{breakable(task)} <span class=pm>{breakable(metric)}</span>" if dot else breakable(text)


def task_of(key: str) -> str:
    return key.rpartition(".")[0] or key


def badge(text: str, kind: str = "plain", href: str = "") -> str:
    if href:
        return f'<a class="badge {kind}" href="{escape(href)}">{escape(text)}</a>'
    return f'<span class="badge {kind}">{escape(text)}</span>'


def word_badge(word: str) -> str:
    return badge(f"{SYMBOLS[word]} {word}", WORD_CLASS[word])


def where(model: str = "", task: str = "") -> str:
    """The attributes that the filters look at."""
    parts = [f' data-model="{escape(model)}"' if model else "", f' data-task="{escape(task)}"' if task else ""]
    return "".join(parts)


def quiet(text: str) -> str:
    """A note; ``text`` is escaped already."""
    return f'<p class="quiet">{text}</p>'


class Head(NamedTuple):
    """A column: its heading as HTML, whether it is text (left) or a number (right), the task it belongs to."""

    html: str
    text: bool = False
    task: str = ""
    title: str = ""


def table(label: str, heads: Sequence[Head], rows: Iterable[str], *, sortable: bool = False, kind: str = "") -> str:
    """A table in a region that scrolls by itself and can be reached by keys; ``rows`` are whole ``<tr>`` elements."""
    cells = "".join(
        f'<th scope=col class="{"t" if head.text else "n"}"{where(task=head.task)}{_title(head.title)}>{head.html}</th>'
        for head in heads
    )
    names = " ".join(part for part in ("sortable" if sortable else "", kind) if part)
    return (
        f'<div class="scroll" tabindex=0 role=region aria-label="{escape(label)}"><table class="{names}">'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def cell(html: str, value: object = None, *, text: bool = False, kind: str = "") -> str:
    """A cell; ``value`` is what it is sorted by. The task of a column is in its heading alone: there may be thousands."""
    names = " ".join(part for part in ("t" if text else "", kind) if part)
    attribute = f' class="{names}"' if names else ""
    data = "" if value is None else f' data-v="{escape(str(value))}"'
    return f"<td{attribute}{data}>{html}</td>"


def row_head(html: str, value: object = None, title: str = "") -> str:
    data = "" if value is None else f' data-v="{escape(str(value))}"'
    return f"<th scope=row class=name{data}{_title(title)}>{html}</th>"


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def shortened(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def link(target: str, report: Path) -> str:
    """A relative link from the report, so that the work directory can be copied elsewhere as a whole."""
    relative = os.path.relpath(Path(target).absolute(), report.absolute().parent)
    return escape(quote(Path(relative).as_posix()))
