"""Retention deletes checkpoints under the daemon's feet: pinned ones survive, the others are missed with the reason."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import CONFIG, deliver, logged, reasons, run, scores, started, states
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
OLDEST_FIRST = CONFIG + "  order: oldest-first\n"


@pytest.fixture
def elsewhere(project: Path) -> Iterator[Path]:
    """A save directory on another file system, so that hard links to it are impossible."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == project.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


def test_deleted_while_pinned_it_is_evaluated_all_the_same(models: Path, project: Path) -> None:
    (project / "evaluator.yaml").write_text(OLDEST_FIRST)
    deliver(models, project, 100, 200, 300)
    with started(project, fresh=True) as daemon:
        wait_for(lambda: logged(project, "iteration 100: evaluation begins"))
        for iteration in (100, 200, 300):
            shutil.rmtree(project / "checkpoints" / f"checkpoint-{iteration}")
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert states(project) == {100: "recorded", 200: "recorded", 300: "recorded"}
    assert len(scores(project)) == 6
    assert not list((project / "out" / ".pins").rglob("*.safetensors"))  # let go of: the disk space is back


def test_where_links_are_impossible_the_vanished_are_missed_and_it_goes_on(
    models: Path, project: Path, elsewhere: Path
) -> None:
    text = OLDEST_FIRST.replace("checkpoint_path: checkpoints", f"checkpoint_path: {elsewhere}")
    (project / "evaluator.yaml").write_text(text)
    for iteration in (100, 200):
        shutil.copytree(models / f"checkpoint-{iteration}", elsewhere / f"checkpoint-{iteration}")
    with started(project, fresh=True) as daemon:
        wait_for(lambda: logged(project, "iteration 100: evaluation begins"))
        for iteration in (100, 200):
            shutil.rmtree(elsewhere / f"checkpoint-{iteration}")
        wait_for(lambda: states(project).get(200) == "missed")
        shutil.copytree(models / "checkpoint-300", elsewhere / "checkpoint-300")
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors  # nothing here could have helped them
    found = reasons(project)
    assert found[100][0] == "missed" and "checkpoint-100 was deleted" in str(found[100][1])
    assert found[200][0] == "missed" and "checkpoint-200 was deleted before its turn" in str(found[200][1])
    assert found[300] == ("recorded", None)
    assert {row[0] for row in scores(project)} == {300}


def test_deleted_while_no_daemon_was_there_it_is_evaluated_from_the_pin_or_missed(models: Path, project: Path) -> None:
    (project / "evaluator.yaml").write_text(OLDEST_FIRST)
    deliver(models, project, 100, 200)
    with started(project, fresh=True) as daemon:
        wait_for(lambda: logged(project, "iteration 100: evaluation begins"))
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    for iteration in (100, 200):
        shutil.rmtree(project / "checkpoints" / f"checkpoint-{iteration}")
    (pin,) = (project / "out" / ".pins" / "tiny-gpt2").glob("*0000200*")
    shutil.rmtree(pin)
    ended = run(project, "--once")
    assert ended.returncode == 0, ended.stderr
    found = reasons(project)
    assert found[100] == ("recorded", None)
    assert found[200][0] == "missed" and "while no daemon was at work" in str(found[200][1])
    assert {row[0] for row in scores(project)} == {100}
    # A missed checkpoint that is there again (its disk was not mounted, say) is no longer missed.
    deliver(models, project, 200)
    assert run(project, "--once").returncode == 0
    assert states(project) == {100: "recorded", 200: "recorded"}
