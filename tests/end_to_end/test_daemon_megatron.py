"""Megatron checkpoints under the real daemon: faults, saves over saves, checks that fail, disks that are full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.heartbeat import HEARTBEAT
from autoeval.tasks.converted import size_of
from recorder.ledger import Ledger
from tests.end_to_end.daemon_world import (
    logged,
    logged_at,
    reasons,
    run,
    save_as_megatron,
    scores,
    started,
    states,
)
from tests.pace import Pace
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
LAYOUTS = ("torch_dist", "torch")


def configure(project: Path, old: str, new: str) -> None:
    config = project / "evaluator.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def evaluated(project: Path) -> set[object]:
    return {row[0] for row in scores(project)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_and_damaged_checkpoints_are_never_evaluated_and_the_next_one_is(
    megatron_saves: Path, megatron_project: Path, layout: str
) -> None:
    """Iteration 100 is half, 200 has NaNs, 300 is deleted while pinned (shards first), 400 a file that is a directory,
    500 is good; the tracker is torn before each."""
    saves, there = megatron_saves / layout, megatron_project / "checkpoints"
    tracker = there / "latest_checkpointed_iteration.txt"
    save_as_megatron(saves / "iter_0000100", there, 100)
    half, last = there / "iter_0000100", "__0_0.distcp" if layout == "torch_dist" else "mp_rank_00/model_optim_rng.pt"
    os.truncate(half / last, (half / last).stat().st_size // 2)
    tracker.write_text("")
    with started(megatron_project, "--end-iteration", "500") as daemon:
        wait_for(lambda: logged(megatron_project, "watching"))
        save_as_megatron(saves / "iter_0000400", there, 200)  # the fixture's iteration 400 has the NaNs
        wait_for(lambda: states(megatron_project).get(200) == "failed")
        tracker.write_text("")
        save_as_megatron(saves / "iter_0000300", there, 300)
        wait_for(lambda: logged(megatron_project, "iteration 300: evaluation begins"))
        for path in sorted(path for path in (there / "iter_0000300").rglob("*") if path.is_file()):
            path.unlink()
        shutil.rmtree(there / "iter_0000300")
        save_as_megatron(saves / "iter_0000100", there, 400)
        (there / "iter_0000400" / last).unlink()
        (there / "iter_0000400" / last).mkdir()
        save_as_megatron(saves / "iter_0000200", there, 500)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 1, errors  # 200 failed for good
    found = reasons(megatron_project)
    assert found[200][0] == "failed" and "NaN" in str(found[200][1])
    assert str(there / "iter_0000200") in str(found[200][1])  # not the pin, which is gone
    assert found[300] == found[500] == ("recorded", None)
    assert set(states(megatron_project)) - {400} == {200, 300, 500}
    assert found.get(400, ("failed",))[0] in ("failed", "missed")
    assert evaluated(megatron_project) == {300, 500}
    status = run(megatron_project, "--status", "--end-iteration", "500").stdout
    assert status.count("NaN") == 1, status
    assert "iteration 200:" in status
    assert "iteration 100: n" in status  # not complete yet, or never evaluated, with the reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_iteration_saved_again_is_a_new_checkpoint_and_its_old_scores_leave_the_curves(
    megatron_saves: Path, megatron_project: Path, layout: str
) -> None:
    saves, there = megatron_saves / layout, megatron_project / "checkpoints"
    save_as_megatron(saves / "iter_0000100", there, 100)
    with started(megatron_project, "--end-iteration", "200") as daemon:
        wait_for(lambda: states(megatron_project).get(100) == "recorded")
        before = scores(megatron_project)
        first = {row[1]: row[4] for row in before}
        save_as_megatron(saves / "iter_0000300", there, 100)  # rolled back: the same iteration, other weights, in place
        wait_for(lambda: len(scores(megatron_project)) == 2 * len(before))
        # Once more, while the save that is under evaluation is written over.
        save_as_megatron(saves / "iter_0000100", there, 200)
        wait_for(lambda: logged(megatron_project, "iteration 200: evaluation begins"))
        save_as_megatron(saves / "iter_0000300", there, 200)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    rows = scores(megatron_project)
    current = {(row[0], row[1]): row[4] for row in rows if not row[8]}
    superseded = {row[1]: row[4] for row in rows if row[8] and row[0] == 100}
    assert superseded == first  # kept as they were
    for task in ("first", "second"):
        assert current[100, task] == current[200, task]  # both now hold the weights of the fixture's iteration 300
    ledger = Ledger(megatron_project / "out" / "ledger.sqlite")
    curve = [(row.iteration, row.task) for row in ledger.scores()]
    ledger.close()
    assert len(curve) == len(set(curve)) and set(curve) == set(current)


def test_the_first_conversion_is_verified_against_megatron_and_only_that(
    megatron_saves: Path, megatron_project: Path
) -> None:
    configure(megatron_project, "verify: never", "verify: first, keep_converted: 2")
    for iteration in (100, 200):
        source = megatron_saves / "torch_dist" / f"iter_0000{iteration}"
        save_as_megatron(source, megatron_project / "checkpoints", iteration)
    ended = run(megatron_project, "--once")
    assert ended.returncode == 0, ended.stderr
    out = megatron_project / "out" / "tiny-gpt2"
    first, second = (json.loads((out / f"iter_0000{i}" / "receipt.json").read_text()) for i in (100, 200))
    assert first["verified"]["passed"] and first["verified"]["difference"] <= 1e-4
    assert second["verified"] is None
    assert second["source"] == str(megatron_project / "checkpoints" / "iter_0000200")
    assert json.loads((out / "verification.json").read_text())["passed"] is True


def test_a_converted_model_that_differs_from_megatron_is_quarantined(
    megatron_saves: Path, megatron_project: Path
) -> None:
    save_as_megatron(megatron_saves / "torch_dist" / "iter_0000100", megatron_project / "checkpoints", 100)
    assert run(megatron_project, "--once").returncode == 0
    before = scores(megatron_project)
    out = megatron_project / "out" / "tiny-gpt2" / "iter_0000100"
    weights = out / "hf" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-400:] = content[-800:-400]  # as long as before, and not what was converted
    weights.write_bytes(content)
    # A task that is new to this checkpoint finds the conversion made already, and is the first to have it verified.
    (megatron_project / "two.py").write_text((megatron_project / "two.py").read_text().replace("second", "third"))
    configure(megatron_project, "verify: never", "verify: always")
    ended = run(megatron_project, "--once")
    assert ended.returncode == 1, ended.stderr
    state, error = reasons(megatron_project)[100]
    assert state == "failed" and "verification against Megatron FAILED" in str(error)
    assert scores(megatron_project) == before  # none of the third task
    assert (out / "hf.quarantined").is_dir() and not (out / "hf").exists()


def test_a_failed_receipt_quarantines_the_checkpoint_and_no_score_is_recorded(
    megatron_saves: Path, megatron_project: Path
) -> None:
    text = megatron_project / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    log = megatron_project / "train.log"
    line = " validation loss at iteration {} | lm loss value: {} | lm loss PPL: 1.0E+00 | \n"
    # The model is random: it cannot have had a loss of 0.01, but it may have had one of 12.
    log.write_text(line.format(100, "1.000000E-02") + line.format(200, "1.200000E+01"))
    configure(megatron_project, "checkpoint_path", "log_path: train.log, validation_text: text.txt, checkpoint_path")
    for iteration in (100, 200):
        source = megatron_saves / "torch" / f"iter_0000{iteration}"
        save_as_megatron(source, megatron_project / "checkpoints", iteration)
    ended = run(megatron_project, "--once")
    assert ended.returncode == 1, ended.stderr
    found = reasons(megatron_project)
    assert found[100][0] == "failed" and "nats per token" in str(found[100][1])
    assert found[200] == ("recorded", None)
    assert evaluated(megatron_project) == {200}
    out = megatron_project / "out" / "tiny-gpt2"
    assert (out / "iter_0000100" / "hf.quarantined").is_dir() and not (out / "iter_0000100" / "hf").exists()
    receipt = json.loads((out / "iter_0000200" / "receipt.json").read_text())
    assert receipt["loss"]["expected"] == 12.0 and receipt["loss"]["passed"]


@pytest.fixture
def small_disk(megatron_project: Path) -> Iterator[Path]:
    """The work directory on a file system of its own, of 100 MB and 500 files."""
    out = megatron_project / "out"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m,nr_inodes=500", "tmpfs", str(out)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield out
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def has_begun(project: Path) -> bool:
    """Whether the daemon has the files that it always has."""
    return logged(project, "(--end-iteration) to appear") and (project / "out" / HEARTBEAT).exists()


def fill(directory: Path, *, leave: int) -> Path:
    """A file that leaves ``leave`` bytes free."""
    file, free = directory / "filler", shutil.disk_usage(directory).free
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free - leave)
    return file


def test_a_model_that_does_not_fit_the_disk_fails_with_the_figures_and_the_next_goes_on(
    megatron_saves: Path, megatron_project: Path, small_disk: Path
) -> None:
    there = megatron_project / "checkpoints"
    save_as_megatron(megatron_saves / "torch_dist" / "iter_0000100", there, 100)
    filler = fill(small_disk, leave=8 * 2**20)  # enough for the ledger, not for what is kept in reserve
    with started(megatron_project, "--end-iteration", "200") as daemon:
        wait_for(lambda: logged(megatron_project, "tiny-gpt2 iteration 100 failed"))
        filler.unlink()
        save_as_megatron(megatron_saves / "torch_dist" / "iter_0000200", there, 200)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 1, errors
    found = reasons(megatron_project)
    assert found[100][0] == "failed" and "its disk has 0 GB to give" in str(found[100][1])
    assert found[200] == ("recorded", None)
    assert evaluated(megatron_project) == {200}
    assert not list(small_disk.rglob(".hf.partial-*"))


def test_a_disk_that_becomes_full_while_the_conversion_is_written_fails_that_checkpoint_alone(
    megatron_saves: Path, megatron_project: Path, small_disk: Path
) -> None:
    """Full of files rather than bytes, which can be arranged exactly: enough are left to begin, not to end."""
    there, filler = megatron_project / "checkpoints", small_disk / "filler"
    with started(megatron_project, "--end-iteration", "200") as daemon:
        wait_for(lambda: has_begun(megatron_project))
        filler.mkdir()
        for number in range(
            os.statvfs(small_disk).f_favail - 10
        ):  # a plan, logs and directories; the model has eight more
            (filler / str(number)).touch()
        save_as_megatron(megatron_saves / "torch_dist" / "iter_0000100", there, 100)
        wait_for(lambda: logged(megatron_project, "tiny-gpt2 iteration 100 failed"))
        shutil.rmtree(filler)
        save_as_megatron(megatron_saves / "torch_dist" / "iter_0000200", there, 200)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 1, errors
    found = reasons(megatron_project)
    assert logged(megatron_project, "iteration 100: conversion begins"), found[100]
    assert found[100][0] == "failed" and "No space left on device" in str(found[100][1])
    assert found[200] == ("recorded", None)
    assert evaluated(megatron_project) == {200}
    assert not list(small_disk.rglob(".hf.partial-*"))


def test_while_the_work_directorys_disk_is_full_it_waits_and_loses_nothing(
    megatron_saves: Path, megatron_project: Path, small_disk: Path
) -> None:
    with started(megatron_project, "--end-iteration", "100") as daemon:
        wait_for(lambda: has_begun(megatron_project))
        filler = fill(small_disk, leave=0)
        save_as_megatron(megatron_saves / "torch" / "iter_0000100", megatron_project / "checkpoints", 100)
        assert daemon.stderr is not None
        assert any("is full" in line for line in daemon.stderr)
        filler.unlink()
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert reasons(megatron_project) == {100: ("recorded", None)}
    assert evaluated(megatron_project) == {100}


def test_the_disk_budget_of_converted_models_removes_the_oldest(megatron_saves: Path, megatron_project: Path) -> None:
    there, out = megatron_project / "checkpoints", megatron_project / "out" / "tiny-gpt2"
    save_as_megatron(megatron_saves / "torch_dist" / "iter_0000100", there, 100)
    configure(megatron_project, "verify: never", "verify: never, keep_converted: 3")
    assert run(megatron_project, "--once").returncode == 0
    budget = 2.5e-9 * size_of(out / "iter_0000100" / "hf")  # room for two
    for iteration in (200, 300):
        save_as_megatron(megatron_saves / "torch_dist" / f"iter_0000{iteration}", there, iteration)
    configure(megatron_project, "keep_converted: 3", f"keep_converted: 3, converted_disk_gb: {budget}")
    ended = run(megatron_project, "--once")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.parent.name for path in out.glob("iter_*/hf")) == ["iter_0000200", "iter_0000300"]
    save_as_megatron(megatron_saves / "torch_dist" / "iter_0000100", there, 400)
    configure(megatron_project, f"converted_disk_gb: {budget}", f"converted_disk_gb: {budget / 25}")
    assert run(megatron_project, "--once", "--end-iteration", "400").returncode == 1
    assert "model.converted_disk_gb allows" in str(reasons(megatron_project)[400][1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_conversion_begins_within_a_moment_of_the_finalising_write(
    megatron_saves: Path, megatron_project: Path, layout: str
) -> None:
    """While the save is under way a worker imports its libraries: then it has only to begin."""
    there = megatron_project / "checkpoints"
    there.mkdir(exist_ok=True)
    source = megatron_saves / layout / "iter_0000100"
    with started(megatron_project, "--end-iteration", "100", fresh=layout == "torch_dist") as daemon:
        wait_for(lambda: logged(megatron_project, "watching"))
        save_as_megatron(
            source, there, 100, pause=lambda: wait_for(lambda: logged(megatron_project, "worker is ready"))
        )
        with Pace() as pace:
            wait_for(lambda: logged(megatron_project, "conversion begins"))
        finalised = (there / "latest_checkpointed_iteration.txt").stat().st_mtime
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    seconds = logged_at(megatron_project, "conversion begins") - finalised
    print(f"{layout}: finalising write to conversion: {seconds:.3f} s")
    assert seconds < 4.0 + pace.takes(1.0)  # 1 s is promised; the machine that tests may be busy
