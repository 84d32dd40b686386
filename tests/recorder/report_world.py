"""Ledgers to report on, and a browser to look at the report with."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recorder.baselines import Baseline
from recorder.ledger import Ledger
from recorder.report import build_report
from recorder.results import CheckpointRef, Item, Score, TaskResult

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 90.0  # seconds for a browser on a busy machine
BASELINES = [
    Baseline("gpt2-124m", 10.0, {"choice.acc": 0.31, "copy.exact_match": 0.25}, "a paper, table 2"),
    Baseline("evil <img src=x onerror=alert(1)>", 300.0, {"choice.acc": 0.52, "copy.exact_match": 0.6}, '"quoted"'),
]

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (setup_scripts/test.sh does it)"
)


def fill(ledger: Ledger, levels: tuple[float, ...], *, model: str = "demo-gpt", n: int = 200) -> None:
    """One checkpoint per level; item i of a task is right when (i + 0.5) / n is below the level."""
    for step, level in enumerate(levels, start=1):
        ref = CheckpointRef(model, step * 1000, f"f{step}", f"/checkpoints/iter_{step * 1000:07d}", step * 0.25)
        ledger.note_checkpoint(ref)
        for task, metric, chance in (("choice", "acc", 0.25), ("copy", "exact_match", 0.0)):
            outcomes = [float((i + 0.5) / n < level) for i in range(n)]
            value = sum(outcomes) / n
            main = Score(metric, value, math.sqrt(value * (1 - value) / n), n, chance=chance)
            items = tuple(Item(f"item{i}", metric, outcome) for i, outcome in enumerate(outcomes))
            ledger.ingest(TaskResult(ref, task, "v1", "icl", (main, Score("f1", value, 0.01, n)), items))
        bits = Score("bits_per_byte", 3 - level, 0.05, n, higher_is_better=False)
        ledger.ingest(TaskResult(ref, "text", "v1", "icl", (bits,)))
        ledger.set_state(ref, "recorded")


def build(ledger: Ledger, baselines: list[Baseline] | None = None) -> str:
    output = ledger.path.with_name("report.html")
    build_report(ledger, output, title="Quickstart", baselines=BASELINES if baselines is None else baselines)
    return output.read_text(encoding="utf-8")


class Reader:
    """A page in headless Chromium; ``complaints`` are its console's errors and warnings, and what it asked for."""

    def __init__(self, page: Any):
        self.page = page
        page.set_default_timeout(PATIENCE * 1000)
        self.complaints: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else self.requests.append(r.url)
        )
        self.requests: list[str] = []

    def open(self, path: Path) -> Reader:
        self.page.goto(path.absolute().as_uri())
        self.until("document.documentElement.dataset.drawn !== undefined")
        return self

    def until(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait for it to be true. The page's own policy forbids what Playwright's wait_for_function would do."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"() => Boolean({expression})"):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            self.page.wait_for_timeout(30)

    def until_charts(self, count: int) -> None:
        self.until(f"document.documentElement.dataset.charts === '{count}'")

    def data(self, name: str) -> str | None:
        return self.page.evaluate("name => document.documentElement.dataset[name]", name)

    def shown(self, selector: str) -> list[str]:
        """The texts of the visible elements."""
        found = self.page.locator(selector)
        return [one.inner_text() for one in found.all() if one.is_visible()]


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE * 1000
        )
        try:
            yield started
        finally:
            started.close()
