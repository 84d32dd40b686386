"""Whose turn it is: order, backlog, several runs in one daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import CONFIG, deliver, logged, reasons, run, scores, started, turns
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
AT_ONCE = CONFIG.replace("token_per_iteration: 0.001", "token_per_iteration: 0.001, settle_seconds: {quiet: 0}")


def iterations(project: Path) -> list[int]:
    return [iteration for _, iteration in turns(project)]


def test_bisect_takes_the_ends_and_the_middle_and_a_backlog_of_three_misses_the_rest(
    models: Path, project: Path
) -> None:
    (project / "evaluator.yaml").write_text(AT_ONCE + "  order: bisect\n  max_backlog: 3\n")
    deliver(models, project, 100, 200, 300, 400, 500)
    ended = run(project, "--end-iteration", "500")
    assert ended.returncode == 0, ended.stderr
    assert iterations(project) == [500, 100, 300]
    missed = ("missed", "max_backlog: more than 3 checkpoints were waiting")
    assert reasons(project) == {
        **dict.fromkeys((100, 300, 500), ("recorded", None)), 200: missed, 400: missed,
    }  # fmt: skip
    assert run(project, "--end-iteration", "500").returncode == 0
    assert iterations(project) == [500, 100, 300]  # what was given up stays given up, until somebody asks for it
    assert "1 checkpoints will be tried again" in run(project, "--retry", "200").stdout
    assert run(project, "--end-iteration", "500").returncode == 0
    assert iterations(project) == [500, 100, 300, 200]
    assert {row[0] for row in scores(project)} == {100, 200, 300, 500}


def test_a_newer_checkpoint_goes_before_all_that_wait(models: Path, project: Path) -> None:
    (project / "evaluator.yaml").write_text(AT_ONCE)
    deliver(models, project, 100, 200, 300)
    with started(project, "--end-iteration", "400", fresh=True) as daemon:
        wait_for(lambda: logged(project, "iteration 300: evaluation begins"))
        deliver(models, project, 400)  # the worker has yet to import its libraries
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert iterations(project) == [300, 400, 200, 100]


def test_runs_take_turns_and_none_starves(models: Path, project: Path) -> None:
    first = AT_ONCE.split("auto_eval:\n")[1]
    entries = "".join(
        "  - " + first.replace("tiny-gpt2", name).lstrip().replace("\n", "\n  ").rstrip() + "\n" for name in "ab"
    )
    (project / "evaluator.yaml").write_text("auto_eval:\n" + entries)
    deliver(models, project, 100, 200, 300)
    ended = run(project, "--once")
    assert ended.returncode == 0, ended.stderr
    assert turns(project) == [("a", 300), ("b", 300), ("a", 200), ("b", 200), ("a", 100), ("b", 100)]
    assert len(scores(project)) == 2 * 2 * 3
