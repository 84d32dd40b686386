"""The report as a person sees it: what its sentences say, and that a browser draws it without a complaint."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path

import pytest
from report_world import build, fill

from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.verdict import checkpoint_verdict


def text_of(page: str, section: str) -> str:
    found = re.search(rf'<section id="{section}".*?</section>', page, re.S)
    assert found
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found[0].replace("<wbr>", ""))).split())


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (
            (0.3, 0.5),
            r"Iteration 2,000 is better than iteration 1,000: \+23\.3 points \(95 %: \+1\d\.\d to \+2\d\.\d\), 400 paired items in 2 tasks",
        ),
        ((0.5, 0.3), r"Iteration 2,000 is worse than iteration 1,000: −23\.3 points"),
        (
            (0.5, 0.505),
            r"Iteration 2,000 cannot be told from iteration 1,000: \+0\.6 points .* would likely be missed",
        ),
        ((0.5,), r"Newest: iteration 1,000; there is no earlier checkpoint to compare it with"),
    ],
)
def test_the_first_sentence_says_better_worse_or_cannot_tell(ledger: Ledger, levels, expected: str) -> None:
    fill(ledger, levels)
    glance = text_of(build(ledger), "glance")
    assert re.search(expected, glance), glance
    assert levels != (0.5, 0.3) or "Worse on text.bits_per_byte: 2.500 → 2.700 (lower is better)" in glance
    assert "✓ no failures" in glance
    assert (f"All {len(levels)} checkpoints evaluated" if len(levels) > 1 else "Its one checkpoint") in glance


def test_one_task_of_many_is_not_called_better_for_what_chance_does_to_one_in_twenty(ledger: Ledger) -> None:
    """Nine up and one down of 100 would be something (p = 0.02) if it were the only task that was looked at."""
    verdicts = []
    for tasks in (1, 10):
        for step in (1, 2):
            ref = CheckpointRef(f"gpt-{tasks}", step * 1000, f"f{step}", "/checkpoints")
            ledger.note_checkpoint(ref, "recorded")
            for number in range(tasks):
                changed = {f"i{i}": float(i < 9 if step == 2 else i == 9) for i in range(10 if number == 0 else 0)}
                outcomes = {f"i{i}": float(i % 2) for i in range(100)} | changed
                value = sum(outcomes.values()) / 100
                items = tuple(Item(key, "acc", outcome) for key, outcome in outcomes.items())
                score = Score("acc", value, math.sqrt(value * (1 - value) / 100), 100)
                ledger.ingest(TaskResult(ref, f"task{number}", "v1", "icl", (score,), items))
        found = checkpoint_verdict(ledger.scores(), f"gpt-{tasks}", items=ledger.outcomes)
        verdict = found.previous if found is not None else None
        assert verdict is not None and verdict.tasks[0].difference.low > 0
        verdicts.append(verdict.tasks[0].difference.verdict)
    assert verdicts == ["better", "cannot tell"]
    assert "corrected for the number of tasks (Holm) and for how often" in text_of(build(ledger), "glance")


def test_failures_are_said_first_and_shown_with_their_log(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5))
    ref = CheckpointRef("demo-gpt", 3000, "f3", "/checkpoints/iter_0003000")
    ledger.note_checkpoint(ref)
    log = ledger.path.parent / "logs" / "iter 3000.log"
    ledger.note_task(ref, "copy", "failed", version="v1", error="<script>alert('x')</script> of 7", log=str(log))
    ledger.set_state(ref, "failed", "conversion: shapes differ")
    page = build(ledger)
    glance = text_of(page, "glance")
    assert "✕ 1 checkpoint failed, 1 task run failed" in glance and "✕ Last failure iteration 3,000" in glance
    assert "copy : <script>alert('x')</script> of 7" in text_of(page, "states")
    assert "<script>alert('x')" not in page
    assert 'href="logs/iter%203000.log"' in page


def test_nothing_a_model_or_a_baseline_is_called_becomes_markup(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5), model='</script><b title="x">{{plotly}}')
    page = build(ledger)
    assert "<img src=x" not in page and "</script><b" not in page and '<b title="x">' not in page
    assert page.count("</script>") == 4
    assert data_of(page)["models"] == ['</script><b title="x">{{plotly}}']


def test_curves_hold_the_ledgers_numbers(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5))
    charts = {chart["title"]: chart for chart in data_of(build(ledger))["charts"]}
    assert list(charts) == [
        "Average of 2 tasks", "choice.acc", "copy.exact_match", "text.bits_per_byte", "choice.f1", "copy.f1",
    ]  # fmt: skip
    choice = charts["choice.acc"]["series"][0]
    assert (choice["iteration"], choice["tokens"], choice["value"]) == ([1000, 2000], [0.25, 0.5], [0.3, 0.5])
    assert all(
        low < value < high for low, value, high in zip(choice["low"], choice["value"], choice["high"], strict=True)
    )
    assert [line["value"] for line in charts["choice.acc"]["baselines"]] == [0.31, 0.52]
    average = charts["Average of 2 tasks"]["series"][0]["value"]
    assert average == pytest.approx([((0.3 - 0.25) / 0.75 + 0.3) / 2, ((0.5 - 0.25) / 0.75 + 0.5) / 2], abs=1e-5)


def test_the_leaderboard_ranks_the_run_among_the_baselines(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5))
    board = text_of(build(ledger), "leaderboard")
    assert (
        board.index("evil <img src=x onerror=alert(1)> baseline") < board.index("demo-gpt") < board.index("gpt2-124m")
    )
    assert "mean over the 2 metrics that all ranked rows share" in board


def test_an_empty_ledger_gives_a_page_that_says_so(ledger: Ledger) -> None:
    page = build(ledger, [])
    assert "no complete checkpoint has been seen" in text_of(page, "glance")


def test_a_hundred_checkpoints_of_fifty_metrics_stay_below_6_mb(ledger: Ledger) -> None:
    for step in range(1, 101):
        ref = CheckpointRef("m", step * 1000, "f", "/x", step / 10)
        scores = tuple(Score(f"metric{k}", math.sin(step * k) ** 2, 0.0123456789, 100) for k in range(50))
        ledger.ingest(TaskResult(ref, "task", "v", "icl", scores))
    assert len(build(ledger).encode()) < 6_000_000
