"""OpenCompass's summary: one row a dataset and metric, one column a model; as txt, csv and md."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.summarizers.groups import METRIC_BLACKLIST, METRIC_WHITELIST, Cell, Entry, Group
from autoeval.tasks.names import dataset_abbr, model_abbr, output_path
from autoeval.tasks.results import NOT_METRICS, mode_of, read_result
from recorder.files import write_atomic
from recorder.untrusted import csv_cell

_WIDTH = 128
_CELL = 80
Rows = list[list[str]]


class DefaultSummarizer:
    """``dataset_abbrs``: which rows, in which order (abbrs, or (abbr, metric)); without it, all metrics of all.

    ``summary_groups``: averages over datasets, dict(name=, subsets=[...], weights={...}, std=False).
    """

    def __init__(
        self,
        dataset_abbrs: Sequence[Any] | None = None,
        summary_groups: Sequence[Any] = (),
        prompt_db: Any = None,  # OpenCompass's configurations may have it
    ) -> None:
        del prompt_db
        self.groups = [Group.read(one) for one in summary_groups]
        self.chosen = None if dataset_abbrs is None else [_wanted(one) for one in dataset_abbrs]

    def summarize(
        self,
        work_dir: Path,
        models: Sequence[Mapping[str, Any]],
        datasets: Sequence[Mapping[str, Any]],
        *,
        stamp: str,
        reasons: Mapping[Path, str],
        failures: Sequence[str] = (),
    ) -> tuple[str, Path]:
        """Write ``summary/summary_<stamp>.{txt,csv,md}``; the table, and the path of the txt.

        ``reasons``: why a result is not there, by its path. ``failures``: what is said of tasks that failed.
        """
        columns = {model_abbr(model): self._entries(work_dir, model, datasets, reasons) for model in models}
        rows = [["dataset", "version", "metric", "mode", *columns], *self._rows(columns, datasets)]
        table = _tabulated(rows)
        raw = [line for abbr, entries in columns.items() for line in _raw(abbr, entries)]
        parts = {"tabulate format": table, "csv format": _csv(rows), "markdown format": markdown(rows)}
        parts["raw format"] = "\n".join(raw)
        if failures:
            parts["failures"] = "\n\n".join(failures)
        divider = "-" * _WIDTH + " THIS IS A DIVIDER " + "-" * _WIDTH
        blocks = [f"{name}\n{'^' * _WIDTH}\n{text}\n{'$' * _WIDTH}" for name, text in parts.items()]
        base = work_dir / "summary" / f"summary_{stamp}"
        write_atomic(base.with_suffix(".txt"), f"{stamp}\n" + f"\n\n{divider}\n\n".join(blocks) + "\n")
        write_atomic(base.with_suffix(".csv"), _csv(rows) + "\n")
        write_atomic(base.with_suffix(".md"), markdown(rows) + "\n")
        return table, base.with_suffix(".txt")

    def _entries(
        self,
        work_dir: Path,
        model: Mapping[str, Any],
        datasets: Sequence[Mapping[str, Any]],
        reasons: Mapping[Path, str],
    ) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for dataset in datasets:
            path = output_path(work_dir / "results", model, dataset)
            result = None if path in reasons else read_result(path)
            if result is None:
                entries[dataset_abbr(dataset)] = Entry({}, mode=mode_of(dataset), error=reasons.get(path, "no result"))
            else:
                entries[dataset_abbr(dataset)] = _entry(result)
        named = {name for name, _ in self.chosen or ()}
        for group in self.groups:
            # Unless asked for, a group of which this run has only a part is no news.
            if group.name not in entries and (group.name in named or all(abbr in entries for abbr, _ in group.subsets)):
                entries[group.name] = group.entry(entries)
        return entries

    def _rows(self, columns: Mapping[str, Mapping[str, Entry]], datasets: Sequence[Mapping[str, Any]]) -> Rows:
        names = list(dict.fromkeys(name for entries in columns.values() for name in entries))
        chosen: list[tuple[str, str | None]] = []
        for name in names if self.chosen is None else []:
            metrics = dict.fromkeys(m for entries in columns.values() if name in entries for m in entries[name].metrics)
            chosen += [(name, metric) for metric in metrics] or [(name, None)]
        rows = []
        for name, metric in chosen if self.chosen is None else self.chosen:
            if name.startswith("---"):  # a heading, as "--------- Exam ---------" in OpenCompass's summarizers
                rows.append([name, *["-"] * (3 + len(columns))])
                continue
            entries = [column.get(name, Entry({}, error="not in this run")) for column in columns.values()]
            there = next((entry for entry in entries if not entry.error), Entry({}))
            shown = metric or next(iter(there.metrics), "-")
            mode = there.mode if there.metrics else next((e.mode for e in entries if e.mode != "unknown"), "-")
            rows.append([name, there.version, shown, mode, *(str(entry.cell(metric)) for entry in entries)])
        return rows


def _wanted(one: Any) -> tuple[str, str | None]:
    if isinstance(one, str):
        return one, None
    if isinstance(one, Sequence) and len(one) == 2:
        return str(one[0]), str(one[1])
    raise ValueError(f"dataset_abbrs holds {one!r}, expected an abbr or (abbr, metric)")


def _entry(result: Mapping[str, Any]) -> Entry:
    found = {
        name: value
        for name, value in result.items()
        if isinstance(value, (int, float))
        and name not in NOT_METRICS | METRIC_BLACKLIST
        and not _is_error(name, result)
    }
    order = [name for name in METRIC_WHITELIST if name in found]
    order += [name for name in found if name not in order]
    cells = {name: Cell(found[name], result.get(f"{name}_stderr"), int(result.get("n", 0))) for name in order}
    if not cells:
        return Entry({}, error="the result has no metric")
    return Entry(cells, str(result.get("version", "-"))[:6], str(result.get("mode", "unknown")))


def _is_error(name: str, result: Mapping[str, Any]) -> bool:
    return name.endswith("_stderr") and name.removesuffix("_stderr") in result


def _tabulated(rows: Rows) -> str:
    from tabulate import tabulate

    return str(tabulate([[_short(cell) for cell in row] for row in rows], headers="firstrow", disable_numparse=True))


def _short(cell: str) -> str:
    """A reason may be long; the csv, the md and the raw part have it whole."""
    return cell if len(cell) <= _CELL else f"{cell[: _CELL - 1]}…"


def _csv(rows: Rows) -> str:
    """Headings are as the user's configuration has them; whatever names results have is no formula."""
    buffer = io.StringIO()
    written = (row if all(cell == "-" for cell in row[1:]) else map(csv_cell, row) for row in rows)
    csv.writer(buffer, lineterminator="\n").writerows(written)
    return buffer.getvalue().rstrip("\n")


def markdown(rows: Rows) -> str:
    """``rows`` as a Markdown table, the first one as its head."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [escaped[0], ["---"] * len(rows[0]), *escaped[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _raw(model: str, entries: Mapping[str, Entry]) -> list[str]:
    lines = ["-" * 31, f"Model: {model}"]
    for name, entry in entries.items():
        shown = (
            {metric: cell.value for metric, cell in entry.metrics.items()}
            if not entry.error
            else {"error": entry.error}
        )
        lines.append(f"{name}: {shown}")
    return lines
