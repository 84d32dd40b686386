"""The report as a person sees it: what its sentences say, and that a browser draws it without a complaint."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from html import unescape
from pathlib import Path

import pytest

from recorder.baselines import Baseline
from recorder.ledger import Ledger
from recorder.report import build_report
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.verdict import newest_verdict

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BASELINES = [
    Baseline("gpt2-124m", 10.0, {"choice.acc": 0.31, "copy.exact_match": 0.25}, "a paper, table 2"),
    Baseline("evil <img src=x onerror=alert(1)>", 300.0, {"choice.acc": 0.52, "copy.exact_match": 0.6}, '"quoted"'),
]


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


def build(ledger: Ledger, baselines: list[Baseline] | None = None) -> str:
    output = ledger.path.with_name("report.html")
    build_report(ledger, output, title="Quickstart", baselines=BASELINES if baselines is None else baselines)
    return output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (
            (0.3, 0.5),
            r"iteration 2,000 is better than 1,000 by \+23\.3 percentage points \(95 %: \+1\d\.\d to \+2\d\.\d\)",
        ),
        ((0.5, 0.3), r"iteration 2,000 is worse than 1,000 by -23\.3 percentage points"),
        (
            (0.5, 0.505),
            r"iteration 2,000 – cannot tell from 1,000 \(\+0\.6 percentage points .* would likely be missed",
        ),
        ((0.5,), r"iteration 1,000; there is no earlier checkpoint to compare it with"),
    ],
)
def test_the_first_sentence_says_better_worse_or_cannot_tell(ledger: Ledger, levels, expected: str) -> None:
    fill(ledger, levels)
    glance = text_of(build(ledger), "glance")
    assert re.search(expected, glance), glance
    assert "No failures." in glance
    assert f"all {len(levels)} checkpoints evaluated" in glance


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
        verdict = newest_verdict(ledger, ledger.scores(), f"gpt-{tasks}")
        assert verdict is not None and verdict.tasks[0].difference.low > 0
        verdicts.append(verdict.tasks[0].difference.verdict)
    assert verdicts == ["better", "cannot tell"]
    assert "corrected for the number of tasks (Holm)" in text_of(build(ledger), "glance")


def test_failures_are_said_first_and_shown_with_their_log(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5))
    ref = CheckpointRef("demo-gpt", 3000, "f3", "/checkpoints/iter_0003000")
    ledger.note_checkpoint(ref)
    log = ledger.path.parent / "logs" / "iter 3000.log"
    ledger.note_task(ref, "copy", "failed", version="v1", error="<script>alert('x')</script> of 7", log=str(log))
    ledger.set_state(ref, "failed", "conversion: shapes differ")
    page = build(ledger)
    assert "1 checkpoint failed or missed and 1 task run failed" in text_of(page, "glance")
    assert "copy : <script>alert('x')</script> of 7" in text_of(page, "states")
    assert "<script>alert('x')" not in page
    assert 'href="logs/iter%203000.log"' in page


def test_nothing_a_model_or_a_baseline_is_called_becomes_markup(ledger: Ledger) -> None:
    fill(ledger, (0.3, 0.5), model='</script><b title="x">{{plotly}}')
    page = build(ledger)
    assert "<img src=x" not in page and "</script><b" not in page and '<b title="x">' not in page
    assert page.count("</script>") == 3
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
    assert "mean over the 2 metrics that all ranked rows share (choice.acc, copy.exact_match)" in board


def test_an_empty_ledger_gives_a_page_that_says_so(ledger: Ledger) -> None:
    page = build(ledger, [])
    assert "no complete checkpoint has been seen" in text_of(page, "glance")


def test_a_hundred_checkpoints_of_fifty_metrics_stay_below_6_mb(ledger: Ledger) -> None:
    for step in range(1, 101):
        ref = CheckpointRef("m", step * 1000, "f", "/x", step / 10)
        scores = tuple(Score(f"metric{k}", math.sin(step * k) ** 2, 0.0123456789, 100) for k in range(50))
        ledger.ingest(TaskResult(ref, "task", "v", "icl", scores))
    assert len(build(ledger).encode()) < 6_000_000


# In a browser


def chromium(page: Path, *flags: str) -> tuple[str, str]:
    """Open ``page`` headless: what ``--dump-dom`` gives, and the console's lines."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--hide-scrollbars", "--virtual-time-budget=8000", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", "--v=0", *flags, page.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def screenshot(page: Path, output: Path, *, width: int, height: int, dark: bool = False) -> None:
    """A picture of ``page``; Chromium's window is at least 500 wide, so a narrower page is put into a frame."""
    if width < 500:
        frame = output.with_suffix(".frame.html")
        style = f"border:0;width:{width}px;height:{height}px"
        frame.write_text(f'<body style="margin:0"><iframe src="{page.absolute().as_uri()}" style="{style}"></iframe>')
        page = frame
    flags = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(page, f"--screenshot={output}", f"--window-size={max(500, width)},{height}", *flags)


def first_pixel(png: Path) -> tuple[int, ...]:
    """Red, green, blue at the top left: no filter of PNG (W3C, section 9) changes the first pixel of the first row."""
    content, position, packed = png.read_bytes(), 8, b""
    while position < len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        if content[position + 4 : position + 8] == b"IDAT":
            packed += content[position + 8 : position + 8 + length]
        position += 12 + length
    return tuple(zlib.decompress(packed)[1:4])


@pytest.fixture
def page(ledger: Ledger) -> Path:
    fill(ledger, (0.2, 0.35, 0.5, 0.62))
    fill(ledger, (0.25, 0.3, 0.42), model="demo-llama")
    build(ledger)
    return ledger.path.with_name("report.html")


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (setup_scripts/test.sh does it)"
)


@pytest.mark.slow
@needs_chromium
def test_a_browser_draws_every_curve_without_a_complaint(page: Path) -> None:
    dom, console = chromium(page, "--dump-dom", "--window-size=1280,2400")
    assert console == ""
    root = re.search(r"<html[^>]*>", dom)
    assert root and 'data-drawn="4"' in root[0] and "data-error" not in root[0]
    drawn = dom[dom.index('id="charts"') : dom.index('id="leaderboard"')]
    assert drawn.count('class="main-svg"') >= 4
    assert drawn.count('class="errorbar"') == 4 * 7
    assert drawn.count(">gpt2-124m</text>") == 3  # the average and the two tasks it has figures for


@pytest.mark.slow
@needs_chromium
def test_switches_and_sorting_work_from_the_keyboards_events(page: Path) -> None:
    """Tokens as x, all metrics, and the leaderboard sorted by iteration, by the clicks that keys and fingers cause."""
    script = """<script>
      document.querySelector("[name=x][value=tokens]").click();
      document.querySelector("#more input").click();
      [...document.querySelectorAll("#leaderboard th button")].find((b) => b.textContent === "iteration").click();
    </script>"""
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8")
    dom, console = chromium(driven, "--dump-dom", "--window-size=1280,3200")
    assert console == ""
    root = re.search(r"<html[^>]*>", dom)
    assert root and 'data-x="tokens"' in root[0] and 'data-drawn="6"' in root[0]
    assert "tokens (billions)" in dom[: dom.index('id="leaderboard"')]
    board = text_of(dom, "leaderboard")
    assert board.index("demo-gpt") < board.index("demo-llama") < board.index("gpt2-124m")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_pictures_on_a_screen_and_a_phone(page: Path, tmp_path: Path, dark: bool) -> None:
    """The picture follows the reader's colour scheme; the phone's has the width of a phone."""
    for width in (1280, 400):
        output = tmp_path / f"{width}.png"
        screenshot(page, output, width=width, height=900, dark=dark)
        corner = sum(first_pixel(output)) / 3
        assert corner < 60 if dark else corner > 200
