"""How a checkpoint's tasks are dealt out to jobs: by what they have cost, by their size where that is not known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from autoeval.dealing import dealt_out, measured_seconds
from autoeval.runners import worker_process
from autoeval.runners.rounds import load_seconds_key
from autoeval.runners.worker_process import TaskList, last_listed, list_tasks
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan
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
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

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


@pytest.mark.slow
def test_the_worker_tells_sizes_and_families(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    listed = list_tasks(asdict(TaskPlan(IclPlan((str(project / "two.py"),), str(project)))))
    assert [name for name, _ in listed.tasks] == ["first", "second"]
    assert listed.sizes["first"] == listed.sizes["second"] > 100
    assert listed.families["first"] == listed.families["second"]
