"""Verdicts on checkpoints, benchmark health, what is worth going on, and what became of each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import pytest

from recorder.baselines import Baseline
from recorder.benchmark_health import _spearman, benchmark_health
from recorder.ledger import Ledger, Outcomes
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.statistics import checkpoint_noise, clopper_pearson_interval, level_trend, student_quantile
from recorder.trajectories import item_trajectory, task_trajectories, trajectories
from recorder.trend import worth
from recorder.verdict import checkpoint_verdict


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def give(
    ledger: Ledger,
    iteration: int,
    tasks: Mapping[str, Sequence[float]],
    *,
    clusters: Sequence[str] | None = None,
    chance: float | None = None,
) -> None:
    """One checkpoint with the outcomes of each task's items."""
    ref = CheckpointRef("gpt", iteration, f"f{iteration}", "/x", iteration / 1000)
    for task, outcomes in tasks.items():
        share = sum(outcomes) / len(outcomes)
        score = Score("acc", share, (share * (1 - share) / len(outcomes)) ** 0.5, len(outcomes), chance=chance)
        items = tuple(
            Item(f"{place:04d}", "acc", float(one), None if clusters is None else clusters[place])
            for place, one in enumerate(outcomes)
        )
        ledger.ingest(TaskResult(ref, task, "v", "icl", (score,), items, finished_at=float(iteration)))


def right(count: int, of: int, begin: int = 0) -> list[float]:
    return [float(begin <= place < begin + count) for place in range(of)]


def verdict_of(ledger: Ledger, iteration: int | None = None, **options):
    return checkpoint_verdict(ledger.scores(), "gpt", iteration, items=ledger.outcomes, **options)


def test_a_checkpoint_is_held_against_previous_best_and_baselines(ledger: Ledger) -> None:
    for iteration, count in ((1000, 300), (2000, 600), (3000, 480)):
        give(ledger, iteration, {"a": right(count, 1000), "b": right(count, 1000)})
    give(ledger, 4000, {"a": right(490, 1000), "b": right(490, 1000)})
    published = [
        Baseline("weak", 10.0, {"a.acc": 0.30, "b.acc": 0.31}, "", {"a.acc": 0.01, "b.acc": 0.01}),
        Baseline("strong", 300.0, {"a.acc": 0.80, "b.acc": 0.81}, ""),
        Baseline("elsewhere", None, {"z.acc": 0.5}, ""),
    ]
    found = verdict_of(ledger, baselines=published)
    assert found is not None and found.iteration == 4000
    assert (found.previous.old_iteration, found.best.old_iteration) == (3000, 2000)
    assert found.previous.overall.value == pytest.approx(0.01) and found.best.overall.value == pytest.approx(-0.11)
    assert found.best.word == "worse" and [task.metric for task in found.best.regressions] == ["a.acc", "b.acc"]
    assert found.best.tasks[0].difference.discordant == 110 and found.best.tasks[0].paired
    assert {one.opponent: one.word for one in found.baselines} == {"weak": "better", "strong": "worse"}
    assert not found.baselines[0].tasks[0].paired and found.baselines[0].old_iteration is None
    assert found.previous.look == 3 and found.previous.overall.detectable > 0
    assert [task.old_iteration for task in found.regressions] == [2000, 2000]


def test_many_looks_ask_for_more_evidence(ledger: Ledger) -> None:
    """18 gains and 6 losses are p = 0.02 alone: said of the first comparison, a hint at the fifth."""
    before = right(50, 200)
    after = list(before)
    after[50:68] = [1.0] * 18
    after[:6] = [0.0] * 6
    for iteration in range(1000, 5000, 1000):
        give(ledger, iteration, {"a": before})
    give(ledger, 5000, {"a": after})
    found = verdict_of(ledger)
    assert found is not None and found.previous is not None and found.previous.look == 4
    (task,) = found.previous.tasks
    assert (task.word, task.word_alone) == ("cannot tell", "better")
    assert (task.difference.gained, task.difference.lost) == (18, 6)
    assert task.p_alone == pytest.approx(0.0227, abs=1e-4) and task.difference.p_value > 0.05


def test_what_moved_in_a_few_passages_is_less_than_what_moved_in_many_items(ledger: Ledger) -> None:
    """40 items gained: spread over 40 passages a proof, all in four passages none."""
    clusters = [f"p{place // 10}" for place in range(400)]
    before = [0.0] * 400
    spread = [float(place % 10 == 0) for place in range(400)]
    together = [float(place < 40) for place in range(400)]
    for name, after, word in (("spread", spread, "better"), ("together", together, "cannot tell")):
        other = Ledger(ledger.path.with_name(f"{name}.sqlite"))
        give(other, 1000, {"a": before}, clusters=clusters)
        give(other, 2000, {"a": after}, clusters=clusters)
        found = verdict_of(other)
        assert found is not None and found.previous is not None
        assert found.previous.tasks[0].difference.gained == 40 and found.previous.tasks[0].difference.clusters == 40
        assert found.previous.word == word
        other.close()


def test_clusters_survive_the_ledger(ledger: Ledger) -> None:
    give(ledger, 1000, {"a": [1.0, 0.5]}, clusters=["p", "p"])
    assert ledger.outcomes("gpt", 1000) == {"a.acc": Outcomes({"0000": 1.0, "0001": 0.5}, {"0000": "p", "0001": "p"})}


def test_a_lower_perplexity_is_better(ledger: Ledger) -> None:
    for iteration, value in ((1000, 3.0), (2000, 2.0)):
        ref = CheckpointRef("gpt", iteration, "f", "/x", 1.0)
        ledger.ingest(TaskResult(ref, "text", "v", "icl", (Score("bpb", value, 0.05, 100, higher_is_better=False),)))
    found = verdict_of(ledger)
    assert found is not None and found.previous is not None and found.previous.overall is None
    (task,) = found.previous.tasks
    assert (task.new, task.old, task.word, task.averaged) == (2.0, 3.0, "better", False)
    assert task.difference.value == pytest.approx(1.0)


def test_noise_of_a_run_is_found_whatever_its_slope() -> None:
    rng = numpy.random.default_rng(1)
    x = [float(2**k) for k in range(60)]
    values = [0.01 * k + float(rng.normal(0, 0.02)) for k in range(60)]
    assert checkpoint_noise(values, last=60) == pytest.approx(0.02, rel=0.3)
    assert checkpoint_noise(values, x, last=60) == pytest.approx(0.02, rel=0.3)
    assert checkpoint_noise([0.1 * k for k in range(10)]) == pytest.approx(0.0, abs=1e-12)
    assert checkpoint_noise([0.1, 0.2, 0.3]) is None


def test_a_level_that_moves_is_told_from_one_that_does_not() -> None:
    fallen = level_trend([1, 2, 3, 4, 5, 6], [0.5, 0.48, 0.47, 0.44, 0.43, 0.40])
    assert fallen is not None and fallen.p_value < 0.001 and fallen.high < 0
    still = level_trend([1, 2, 3, 4, 5, 6], [0.5, 0.52, 0.49, 0.51, 0.48, 0.5])
    assert still is not None and still.p_value > 0.2 and still.low < 0 < still.high
    assert level_trend([1, 1, 1, 1], [0.1, 0.2, 0.3, 0.4]) is None


def rising(ledger: Ledger, courses: Mapping[str, Sequence[float]], items: int = 400) -> None:
    """Checkpoints every 1,000 iterations whose shares follow ``courses``, a little off; items are learned in order."""
    rng = numpy.random.default_rng(12)
    for place in range(len(next(iter(courses.values())))):
        off = {name: round(float(rng.normal(0, 0.006 * items))) for name in courses}
        tasks = {name: right(round(course[place] * items) + off[name], items) for name, course in courses.items()}
        give(ledger, 1000 * (place + 1), tasks, chance=0.25)


def test_a_run_that_saturates_may_stop_and_one_that_rises_goes_on(ledger: Ledger) -> None:
    still = [0.25 + 0.35 * (1 - (place + 1) ** -2.0) for place in range(16)]
    steep = [0.25 + 0.6 * (1 - (place + 1) ** -0.5) for place in range(16)]
    rising(ledger, {"still": still, "still2": still})
    future = worth(ledger.scores(), "gpt", items=ledger.outcomes)
    assert future is not None and future.word == "not worth it"
    assert "below what this benchmark can detect" in future.sentence and "Stopping is defensible" in future.sentence
    other = Ledger(ledger.path.with_name("steep.sqlite"))
    rising(other, {"steep": steep, "steep2": steep})
    future = worth(other.scores(), "gpt", items=other.outcomes)
    assert future is not None and future.word == "worth it" and future.average is not None
    assert future.average.gain is not None and future.average.gain > (future.average.detectable or 1.0)
    assert future.average.unit == "tokens" and future.average.ahead == pytest.approx(8.0)
    assert {one.detectable_from for one in future.tasks} == {"items"}
    assert future.average.by == "power law" and future.average.curve
    again = worth(other.scores(), "gpt", items=other.outcomes)
    assert again == future
    other.close()


def test_a_course_that_gets_no_flatter_is_carried_on_as_a_line(ledger: Ledger) -> None:
    """A law that saturates promises less than what is plainly coming: nobody is told to stop because of that."""
    line = [0.30 + 0.03 * place for place in range(16)]
    rising(ledger, {"a": line, "b": line})
    goal = Baseline("goal", None, {"a.acc": 0.84, "b.acc": 0.84}, "")
    future = worth(ledger.scores(), "gpt", items=ledger.outcomes, baselines=[goal], ahead=4.0)
    assert future is not None and future.word == "worth it" and future.average is not None
    assert future.average.by == "line" and future.average.gain == pytest.approx(4 * 0.03 / 0.75, rel=0.05)
    task = future.tasks[0]
    assert task.reaches[0].at == pytest.approx(19.0, rel=0.05) and not task.reaches[0].reached


def test_too_few_checkpoints_are_said_to_be(ledger: Ledger) -> None:
    rising(ledger, {"a": [0.3, 0.4, 0.5], "b": [0.3, 0.4, 0.5]})
    future = worth(ledger.scores(), "gpt", items=ledger.outcomes)
    assert future is not None and future.word == "too early" and "5 checkpoints are needed" in future.sentence
    assert {one.word for one in benchmark_health(ledger.scores(), "gpt")} == {"too early"}
    assert worth([], "gpt") is None and benchmark_health([], "gpt") == []


def test_a_benchmark_that_only_flickers_carries_no_signal(ledger: Ledger) -> None:
    flicker = [0.26, 0.24, 0.25, 0.26, 0.23, 0.26, 0.24, 0.25]
    rises = [0.25, 0.3, 0.36, 0.41, 0.45, 0.5, 0.52, 0.55]
    rising(ledger, {"flicker": flicker, "rises": rises})
    health = {one.metric: one for one in benchmark_health(ledger.scores(), "gpt")}
    assert health["flicker.acc"].word == "no signal" and "at chance" in health["flicker.acc"].reasons[0]
    assert health["rises.acc"].word == "signal" and health["rises.acc"].reasons == ()
    assert health["rises.acc"].monotonicity == pytest.approx(1.0) and (health["rises.acc"].snr or 0) > 5


def test_when_an_item_was_learned_and_forgotten() -> None:
    at = (1, 2, 3, 4, 5, 6)
    assert item_trajectory("k", at, (0.0, 1.0, 0.0, 1.0, 1.0, 1.0)).learned_at == 4  # once is luck
    forgotten = item_trajectory("k", at, (0.0, 1.0, 1.0, 1.0, 0.0, 0.0))
    assert (forgotten.learned_at, forgotten.forgotten_at, forgotten.flips) == (2, 5, 2)
    assert item_trajectory("k", at, (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)).forgotten_at is None  # once is luck here too
    assert item_trajectory("k", at, (None, 0.0, None, 0.0, 0.0, 0.0)).learned_at is None


def test_forgetting_is_flips_not_a_drop(ledger: Ledger) -> None:
    """Both lose 5 points. One exchanges many items at random; the other loses what it knew and gains nothing."""
    rng = numpy.random.default_rng(3)
    old = right(120, 200)
    noisy = [1.0 - one if rng.random() < 0.45 else one for one in old]
    lost = [0.0 if 0 <= place < 10 else one for place, one in enumerate(old)]
    for iteration, tasks in ((1000, (old, old)), (2000, (noisy, lost))):
        give(ledger, iteration, {"noisy": tasks[0], "lost": tasks[1]})
    found = {one.metric: one for one in trajectories(ledger, "gpt")}
    (noise,) = found["noisy.acc"].forgetting
    (loss,) = found["lost.acc"].forgetting
    assert noise.lost > 30 and noise.gained > 20 and not noise.significant
    assert (loss.lost, loss.gained, loss.significant) == (10, 0, True)
    assert loss.keys == tuple(f"{place:04d}" for place in range(10))
    assert trajectories(ledger, "gpt", metrics=["lost.acc"])[0].iterations == (1000, 2000)


def test_the_best_checkpoint_is_held_against_the_newest(ledger: Ledger) -> None:
    courses = {
        at: Outcomes({str(k): float(k < count) for k in range(100)})
        for at, count in ((1, 50), (2, 90), (3, 80), (4, 60))
    }
    found = task_trajectories("gpt", "a.acc", courses)
    assert [(one.old, one.new) for one in found.forgetting] == [(1, 2), (2, 3), (3, 4), (2, 4)]
    assert found.forgetting[-1].significant and found.forgetting[-1].lost == 30
    assert found.never_learned == 20  # 80 to 89 were right once, which may be luck


def test_quantiles_equal_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [1, 2, 3, 4, 5, 6], [0.1, 0.3, 0.3, 0.2, 0.3, 0.5]
    assert _spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    for degrees in (1, 2.5, 30, 999, 1000, 1e6):
        assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)
    line = stats.linregress(x, y)
    found = level_trend(x, y)
    assert (
        found is not None and found.p_value == pytest.approx(line.pvalue) and found.slope == pytest.approx(line.slope)
    )
    assert clopper_pearson_interval(3, 20) == pytest.approx(tuple(stats.binomtest(3, 20).proportion_ci(method="exact")))


def test_the_best_of_many_was_lucky_in_items_too() -> None:
    """Eight items lost and none gained since the best of six, of which the others say nothing: p x 9, not x 6."""
    courses = {at: Outcomes({str(k): float(k < count) for k in range(40)}) for at, count in
               ((1, 22), (2, 30), (3, 29), (4, 26), (5, 24), (6, 22))}  # fmt: skip
    last = task_trajectories("gpt", "a.acc", courses).forgetting[-1]
    assert (last.old, last.new, last.lost, last.gained) == (2, 6, 8, 0)
    assert last.p_value == pytest.approx(0.5**8 * 9)


def test_a_further_metric_alone_has_no_outlook(ledger: Ledger) -> None:
    for at in range(1, 8):
        scores = (Score("acc", 0.1 * at, 0.01, 50), Score("ppl", 9.0 - at, 0.01, 50, higher_is_better=False))
        ledger.ingest(TaskResult(CheckpointRef("gpt", at, "f", "/x", 1.0 * at), "a", "v", "icl", scores))
    future = worth([row for row in ledger.scores() if row.metric == "ppl"], "gpt")
    assert future is not None and (future.word, future.tasks) == ("too early", ())
