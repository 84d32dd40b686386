"""How a checkpoint's tasks are dealt out to jobs: by what they have cost, by their size where that is not known."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autoeval.dealing import LEAST_SECONDS, LEAST_TOKENS, dealt_out, measured_seconds
from autoeval.partitioners.balanced import factored
from autoeval.runners import worker_process
from autoeval.runners.rounds import load_seconds_key
from autoeval.runners.worker_process import TaskList, last_listed, list_tasks
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan
from autoeval.tasks.shares import Dealt, ShareFiles
from recorder.files import write_json
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Score, TaskResult
from tests.end_to_end.daemon_world import make_project

NAMES = ("long", "a_ppl", "a_gen", "b", "c")


def plan(iteration: int = 300) -> EvaluationPlan:
    ref = CheckpointRef("m", iteration, f"{iteration:032d}", "/c")
    tasks = TaskPlan(IclPlan(NAMES, "d"))
    return EvaluationPlan(ref, "huggingface", "s", "d", "l", tasks, tuple((name, "v1") for name in NAMES))


def shares_of(ledger: Ledger, plan: EvaluationPlan, names: tuple[str, ...], slots: int) -> list[list[str]]:
    return [list(part) for part in dealt_out(ledger, plan, names, slots).parts]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as opened:
        yield opened


def ran(ledger: Ledger, seconds: dict[str, float], iteration: int = 100, version: str = "v1") -> None:
    for task, wall in seconds.items():
        score = (Score("acc", 0.5, 0.1, 4),)
        cost = {"wall_seconds": wall}
        ledger.ingest(TaskResult(plan(iteration).checkpoint, task, version, "icl", score, (), cost, float(iteration)))


def test_the_longest_goes_alone_and_none_is_lost(ledger: Ledger) -> None:
    ran(ledger, {"long": 100.0, "a_ppl": 30.0, "a_gen": 30.0, "b": 30.0, "c": 10.0})
    assert measured_seconds(ledger, plan(), NAMES)["long"] == 100.0
    assert shares_of(ledger, plan(), NAMES, 2) == [["long"], ["a_ppl", "a_gen", "b", "c"]]
    ran(ledger, {"long": 4.0}, 200, version="v0")  # another version says nothing
    assert measured_seconds(ledger, plan(), NAMES)["long"] == 100.0
    ledger.remember(load_seconds_key("m"), "500")  # a second job would load for longer than it saves
    assert shares_of(ledger, plan(), NAMES, 2) == [list(NAMES)]


def test_tasks_about_the_same_rows_stay_together_while_that_is_fair(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = {"a_ppl": "rows", "a_gen": "rows", "long": "1", "b": "2", "c": "3"}
    sizes = {"long": 40.0, "a_ppl": 15.0, "a_gen": 25.0, "b": 30.0, "c": 10.0}
    key = json.dumps(asdict(plan().tasks), sort_keys=True)
    monkeypatch.setitem(worker_process._LISTED, key, TaskList(plan().expected, sizes, families))
    assert last_listed(asdict(plan().tasks)).sizes == sizes
    shares = shares_of(ledger, plan(), NAMES, 3)  # nothing was measured: by size
    assert (
        ["a_ppl", "a_gen"] in shares
        and sorted(name for share in shares for name in share) == sorted(NAMES)
        and len(shares) == 3
    )
    assert len(shares_of(ledger, plan(), NAMES, 5)) == 5  # together they would be more than a fifth
    many = TaskList(
        plan().expected, {name: 10_000 * size for name, size in sizes.items()}, families, dict.fromkeys(NAMES, 99)
    )
    monkeypatch.setitem(worker_process._LISTED, key, many)
    deal = replace(plan(), directory=str(tmp_path))
    assert {cut.task for cut in dealt_out(ledger, deal, NAMES, 2).cuts} == {"long"}  # not those that are together


def listed(monkeypatch: pytest.MonkeyPatch, tasks: EvaluationPlan, sizes: dict[str, float], most: int) -> None:
    key = json.dumps(asdict(tasks.tasks), sort_keys=True)
    monkeypatch.setitem(worker_process._LISTED, key, TaskList(tasks.expected, sizes, {}, dict.fromkeys(sizes, most)))


def test_a_task_that_is_more_than_a_fair_share_is_cut(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = replace(plan(), directory=str(tmp_path))
    listed(monkeypatch, deal, dict.fromkeys(NAMES, 1.0), 1000)
    ran(ledger, {"long": 800.0, "a_ppl": 8.0, "a_gen": 4.0, "b": 2.0, "c": 1.0})
    dealt = dealt_out(ledger, deal, NAMES, 8)
    (cut,) = dealt.cuts
    assert cut.task == "long" and len(dealt.parts) == 8 and math.fsum(cut.weights) == pytest.approx(800)
    assert sorted(step for part in dealt.parts for step in part) == sorted([*cut.names, *NAMES[1:]])
    assert sorted(dealt.turns) == sorted([*cut.names, *NAMES[1:]]) and dealt.turns[0] == cut.names[0]
    cost = {**dict(zip(cut.names, cut.weights, strict=True)), "a_ppl": 8.0, "a_gen": 4.0, "b": 2.0, "c": 1.0}
    lengths = [sum(cost[step] for step in part) for part in dealt.parts]
    assert max(lengths) < 1.05 * 815 / 8  # as one task it would take 800 s
    for part in dealt.parts:
        assert [cost[step] for step in part] == sorted((cost[step] for step in part), reverse=True)
    assert max(cut.weights) <= 815 / 8 / 2 and min(cut.weights) >= LEAST_SECONDS
    assert dealt_out(ledger, deal, NAMES, 1).cuts == dealt.cuts  # what was begun as shares stays so
    aside = replace(deal, directory=str(tmp_path / "other"))
    assert dealt_out(ledger, aside, NAMES, 1).cuts == ()
    ledger.remember(load_seconds_key("m"), "900")  # each further part would load for longer than all take
    assert dealt_out(ledger, aside, NAMES, 8) == Dealt((("long", "a_ppl", "a_gen", "b", "c"),), (), NAMES)


def test_how_a_task_was_cut_is_kept_and_only_what_is_left_of_it_counts(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = replace(plan(), directory=str(tmp_path))
    sizes = {"long": 800_000.0, "a_ppl": 9_000.0, "a_gen": 400_000.0, "b": 9_000.0, "c": 9_000.0}
    listed(monkeypatch, deal, sizes, 6)
    first = dealt_out(ledger, deal, NAMES, 2)  # nothing was measured: by tokens, and no more shares than are sensible
    assert [cut.task for cut in first.cuts] == ["long", "a_gen"] and len(first.parts) == 2
    assert all(2 <= len(cut.weights) <= 6 and min(cut.weights) >= LEAST_TOKENS for cut in first.cuts)
    long, a_gen = first.cuts
    files = ShareFiles(deal, "long", "v1")
    for number in range(1, len(long.weights)):
        write_json(files.path(number), {})
    for number in range(len(a_gen.weights)):
        write_json(ShareFiles(deal, "a_gen", "v1").path(number), {})
    again = dealt_out(ledger, deal, NAMES, 3)
    assert again.cuts == first.cuts and again.turns[0] == long.names[0]
    steps = sorted(step for part in again.parts for step in part)
    assert steps == sorted([long.names[0], "a_gen", "a_ppl", "b", "c"])  # all of a_gen's are there: it is to be joined
    resaved = replace(deal, checkpoint=replace(deal.checkpoint, fingerprint="e" * 32))
    assert dealt_out(ledger, resaved, ["b", "c"], 2).cuts == ()
    assert ShareFiles(resaved, "long", "v1").cut() is None and ShareFiles(deal, "long", "v2").cut() is None


def test_guided_sizes() -> None:
    assert factored(64.0, 2, least=1.0, most=100) == [16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0]
    assert factored(64.0, 2, least=7.0, most=100) == [16.0, 16.0, 8.0, 8.0, 8.0, 8.0]
    assert factored(64.0, 2, least=1.0, most=5) == [16.0, 16.0, 16.0, 16.0]
    assert factored(1.0, 4, least=2.0, most=100) == [1.0] and factored(5.0, 4, least=2.0, most=1) == [5.0]
    for parts, most in ((1, 3), (3, 7), (8, 1000)):
        sizes = factored(100.0, parts, least=0.5, most=most)
        assert math.fsum(sizes) == pytest.approx(100.0) and len(sizes) <= most and sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_the_worker_tells_sizes_and_families(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    told = list_tasks(asdict(TaskPlan(IclPlan((str(project / "two.py"),), str(project)))))
    assert [name for name, _ in told.tasks] == ["first", "second"]
    assert told.sizes["first"] == told.sizes["second"] > 100
    assert told.families["first"] == told.families["second"]
    assert told.most_shares == {"first": 30 // 8, "second": 30 // 8}
