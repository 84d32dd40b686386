"""The report in a real browser: drawn without a complaint, filtered, sorted, by keys alone, in the dark, on a phone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from report_world import Reader, browser, build, fill, needs_chromium

from recorder.ledger import Ledger
from recorder.results import CheckpointRef
from tests.pace import Pace

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ledger = Ledger(tmp_path_factory.mktemp("report") / "ledger.sqlite")
    fill(ledger, (0.2, 0.35, 0.5, 0.58, 0.62, 0.6))
    fill(ledger, (0.25, 0.3, 0.42), model="demo-llama")
    ref = CheckpointRef("demo-llama", 4000, "f4", "/checkpoints/iter_0004000")
    ledger.note_checkpoint(ref)
    ledger.note_task(ref, "copy", "failed", version="v1", error="out of memory", log="/logs/copy.log")
    ledger.set_state(ref, "recorded", "1 of 3 tasks failed")
    build(ledger)
    ledger.close()
    return ledger.path.with_name("report.html")


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def reader(chromium):
    """A desktop window; ``reader.page`` is Playwright's."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    made = Reader(context.new_page())
    yield made
    context.close()
    assert made.complaints == [] and made.requests == [] and made.data is not None


def test_every_curve_is_drawn_with_bands_and_baselines(reader: Reader, page_path: Path) -> None:
    reader.open(page_path)
    assert (reader.data("drawn"), reader.data("charts"), reader.data("error")) == ("4", "4", None)
    plots = reader.page.locator(".plot.js-plotly-plot")
    assert plots.count() == 4
    assert reader.page.locator(".plot .scatterlayer .trace path.js-line").count() >= 8
    filled = reader.page.locator(".plot .scatterlayer .trace path.js-fill").evaluate_all(
        "all => all.filter(one => one.getAttribute('d')).length"
    )
    assert filled >= 8  # a band for each of two models in four charts
    assert reader.page.locator(".plot text", has_text="gpt2-124m").count() == 3  # the average and the tasks it has


def test_filters_narrow_curves_and_tables(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    page.fill("[name=search]", "copy")
    reader.until_charts(2)  # the average stays
    assert reader.shown(".chart h3") == [
        "Average of 2 tasks corrected for chance: 0 is guessing, 1 is perfect",
        "copy exact_match",
    ]
    assert page.locator("#shown").inner_text() == "2 of 4 curves"
    assert {text.split("\n")[0].split(" ")[0] for text in reader.shown("#leaderboard th[data-task]")} == {"copy"}
    page.fill("[name=search]", "copy llama")
    reader.until("!document.querySelector('#leaderboard tr.own:not([hidden])')?.textContent.includes('demo-gpt')")
    assert len(reader.shown("#glance article")) == 1
    page.fill("[name=search]", "nothing has this name")
    reader.until_charts(0)
    assert reader.shown("#nothing") == ["Nothing matches the filters."]
    page.click("button[type=reset]")
    reader.until_charts(4)
    page.select_option("[name=model]", "demo-gpt")
    assert not any("demo-llama" in row for row in reader.shown("#leaderboard tbody tr"))
    assert any("gpt2-124m" in row for row in reader.shown("#leaderboard tbody tr"))  # to compare with
    page.select_option("[name=task]", "choice")
    assert reader.data("charts") == "2"


def test_tokens_log_and_all_metrics(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    assert page.locator(".xtitle").first.text_content() == "iteration"
    page.check("[name=x][value=tokens]", force=True)
    assert page.locator(".xtitle").first.text_content() == "tokens (billions)" and reader.data("x") == "tokens"
    page.check("[name=log]")
    page.check("[name=all]")
    assert reader.data("charts") == "6"
    page.reload()  # as live reload does: what was chosen stays
    reader.until_charts(6)
    assert reader.data("x") == "tokens" and page.locator("[name=log]").is_checked()


def test_all_of_it_by_keys(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("/")
    page.keyboard.type("copy")
    reader.until_charts(2)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "x":
            break
    page.keyboard.press("ArrowRight")
    assert reader.data("x") == "tokens"
    page.locator("#leaderboard th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#leaderboard th").first.get_attribute("aria-sort") == "descending"
    unseen = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, summary, [tabindex]")].filter((one) => {
            if (!one.checkVisibility()) return false;
            one.focus();
            const target = one.type === "radio" ? one.nextElementSibling : one;
            return document.activeElement !== one && !one.disabled && target !== null;
        }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert unseen == []
    names = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, [role=img], [role=region]")].filter((one) => {
            const label = one.getAttribute("aria-label") || one.closest("label")?.textContent || one.textContent;
            return !label.trim();
        }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert names == []  # everything that can be reached says what it is


def test_the_leaderboard_is_sorted_by_a_click(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    page.locator("#leaderboard th button", has_text="iteration").click()
    rows = reader.shown("#leaderboard tbody tr")
    assert "demo-gpt" in rows[0] and "demo-llama" in rows[1] and "baseline" in rows[2]


def test_items_that_changed_can_be_browsed(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    assert len(reader.shown("#browser tbody tr")) == 8  # 2 tasks, 0.62 to 0.6 of 200
    assert reader.shown("#browser tbody th")[0] == "item120"
    strip = page.locator("#browser .strip").first
    assert "5000 right, 6000 wrong" in strip.get_attribute("aria-label")
    page.select_option("#browser select", "gained")
    assert all("demo-llama" in text for text in reader.shown("#browser h3"))
    page.fill("#browser input", "item60")
    assert set(reader.shown("#browser tbody th")) == {"item60"}


def test_only_the_checkpoints_with_errors(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path).page
    page.get_by_label("only the 1 with errors").check()
    (row,) = reader.shown("#states tbody tr")
    assert "4,000" in row and "out of memory" in row


def test_dark_light_and_as_the_system_has_it(chromium, page_path: Path) -> None:
    context = chromium.new_context(color_scheme="dark", viewport={"width": 1280, "height": 900})
    reader = Reader(context.new_page()).open(page_path)

    def brightness() -> float:
        numbers = reader.page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
        return sum(float(one) for one in numbers) / 3

    def ink() -> str:
        return reader.page.locator(".xtitle").first.evaluate("one => getComputedStyle(one).fill")

    in_the_dark = ink()
    assert brightness() < 60
    reader.page.click("#theme [value=light]")
    assert brightness() > 200 and ink() != in_the_dark  # the figures too
    reader.page.reload()
    assert brightness() > 200
    reader.page.click("#theme [value=auto]")
    assert brightness() < 60 and reader.complaints == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_enough_contrast(chromium, page_path: Path, scheme: str) -> None:
    """WCAG 2.1, 1.4.3: at least 4.5 to 1 for text, measured on what the browser computed."""
    context = chromium.new_context(color_scheme=scheme)
    reader = Reader(context.new_page()).open(page_path)
    weak = reader.page.evaluate(
        """() => {
            const channels = (text) => text.match(/[\\d.]+/g).map(Number);
            const luminance = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (one) => { for (; one; one = one.parentElement) { const c = channels(getComputedStyle(one).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
            const found = new Set();
            for (const one of document.querySelectorAll("h1, h2, h3, p, a, .badge, .pm, td, th, label, summary, button, li")) {
                if (!one.checkVisibility() || !one.textContent.trim() || one.querySelector("input")) continue;
                const [a, b] = [luminance(channels(getComputedStyle(one).color)), luminance(behind(one))].sort((x, y) => y - x);
                if ((a + 0.05) / (b + 0.05) < 4.5) found.add(one.tagName + "." + one.className + " " + ((a + 0.05) / (b + 0.05)).toFixed(2));
            }
            return [...found];
        }"""
    )
    context.close()
    assert weak == []


def test_a_phone_shows_it_without_scrolling_sideways(chromium, page_path: Path) -> None:
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    reader = Reader(context.new_page()).open(page_path)
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = reader.page.locator(".plot.js-plotly-plot .main-svg").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().right)"
    )
    assert boxes and max(boxes) <= 390
    small = reader.page.evaluate(
        """() => [...document.querySelectorAll("button:not(th button), select, input[type=search], .segments span")].filter((one) =>
            one.checkVisibility() && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML.slice(0, 60))"""
    )
    assert small == [] and reader.complaints == []  # WCAG 2.2, 2.5.8: targets of 24 pixels
    context.close()


def test_a_hundred_checkpoints_of_fifty_metrics_open_at_once(reader: Reader, tmp_path: Path) -> None:
    import math

    from recorder.results import Score, TaskResult

    ledger = Ledger(tmp_path / "ledger.sqlite")
    for step in range(1, 101):
        ref = CheckpointRef("m", step * 1000, "f", "/x", step / 10)
        for k in range(50):
            score = Score("acc", 0.5 + 0.4 * math.sin(step * k / 99), 0.0123456789, 100)
            ledger.ingest(TaskResult(ref, f"task{k:02}", "v", "icl", (score,)))
    build(ledger, [])
    ledger.close()
    with Pace() as pace:
        begun = time.monotonic()
        reader.open(tmp_path / "report.html")
    assert reader.data("charts") == "51" and int(reader.data("drawn") or 0) < 30  # the rest when they come near
    assert time.monotonic() - begun < pace.takes(20.0)
    reader.page.locator(".chart").last.scroll_into_view_if_needed()
    reader.until("document.querySelector('.chart:last-child .js-plotly-plot')")
