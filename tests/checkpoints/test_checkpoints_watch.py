"""A checkpoint is noticed within a second of its last write, wherever the directory comes from."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import checkpoint_files
import pytest
from checkpoint_files import Save, put, write

from autoeval.checkpoints import Checkpoint, Watcher
from tests.pace import Pace

TRACKER = "latest_checkpointed_iteration.txt"
SOON = 10.0  # seconds: not at the end of an interval of an hour; how soon on a machine at rest is measured once, below


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import torch.distributed.checkpoint as dcp

    directory = tmp_path_factory.mktemp("source") / "iter_0000002"
    dcp.save({"decoder.weight": torch.zeros(4)}, storage_writer=dcp.FileSystemWriter(directory), no_dist=True)
    return directory


def save(source: Path, root: Path, iteration: int) -> float:
    """Write a checkpoint as Megatron does; returns the moment of the last write."""
    directory = root / f"iter_{iteration:07d}"
    directory.mkdir(parents=True)
    for name in ("__0_0.distcp", ".metadata"):
        shutil.copyfile(source / name, directory / name)
    (directory / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (root / TRACKER).write_text(str(iteration))
    return time.monotonic()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watcher]]:
    started: list[Watcher] = []

    def make(root: Path, seconds: float = 3600.0, model_type: str = "megatron") -> Watcher:
        watcher = checkpoint_files.watcher(root, check_interval_seconds=seconds, model_type=model_type)
        watcher.start()
        started.append(watcher)
        watcher.wait(5.0)
        watcher.scan()
        return watcher

    yield make
    for watcher in started:
        watcher.stop()


def next_complete(
    watcher: Watcher, iteration: int, seconds: float = 90.0, but_not: Collection[str] = ()
) -> tuple[Checkpoint, float]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if watcher.wait(0.5):
            for checkpoint in watcher.scan().complete:
                if checkpoint.iteration == iteration and checkpoint.fingerprint not in but_not:
                    return checkpoint, time.monotonic()
    raise AssertionError(f"iteration {iteration} was not noticed in {seconds} s")


def later(action: Callable[[], float]) -> Callable[[], float]:
    """Do it in a thread; the moment it gives, which is awaited."""
    moments: list[float] = []
    thread = threading.Thread(target=lambda: moments.append(action()))
    thread.start()

    def moment() -> float:
        thread.join()
        return moments[0]

    return moment


def test_a_missing_directory_is_waited_for(source: Path, tmp_path: Path, watch: Callable[..., Watcher]) -> None:
    root = tmp_path / "runs" / "gpt" / "checkpoints"
    watcher = watch(root)
    moment = later(lambda: save(source, root, 2))
    checkpoint, noticed = next_complete(watcher, 2)
    assert checkpoint.path == root / "iter_0000002"
    assert noticed - moment() < SOON


def test_the_directory_may_be_deleted_and_made_anew(
    source: Path, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    watcher = watch(root)
    save(source, root, 2)
    next_complete(watcher, 2)
    shutil.rmtree(root)
    while watcher.scan().complete or watcher.wait(0.5):
        pass
    moment = later(lambda: save(source, root, 4))
    _, noticed = next_complete(watcher, 4)
    assert noticed - moment() < SOON


def test_the_finishing_write_in_the_iteration_directory_is_noticed(
    source: Path, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    """The tracker may be there before: then the rename of metadata.json inside is the last event."""
    save(source, tmp_path, 2)
    mark = tmp_path / "iter_0000002" / ".metadata"
    mark.rename(tmp_path / "kept")
    (tmp_path / TRACKER).write_text("2")
    watcher = watch(tmp_path)
    (tmp_path / "kept").rename(mark)
    moment = time.monotonic()
    _, noticed = next_complete(watcher, 2)
    assert noticed - moment < SOON


@pytest.mark.parametrize("layout", ["torch_dist", "fsdp_dtensor", "torch_tp2_pp2_vpp2", "huggingface_shards"])
def test_every_layout_is_noticed_within_a_second(
    layout: str, tmp_path: Path, watch: Callable[..., Watcher], saves: Callable[[str], tuple[Save, Save]]
) -> None:
    """By events: the interval is an hour. The best of three counts, because the machine may be busy."""
    save, again = saves(layout)
    watcher = watch(tmp_path, model_type=save.model_type)
    seconds = []
    with Pace() as pace:
        for iteration, one in ((2, save), (4, save), (4, again)):  # the last one is a save in place
            before = {checkpoint.fingerprint for checkpoint in watcher.scan().complete}
            moment = later(lambda one=one, iteration=iteration: ended(one, tmp_path, iteration))
            _, noticed = next_complete(watcher, iteration, but_not=before)
            seconds.append(noticed - moment())
    assert min(seconds) < pace.takes(1.0)
    assert seconds[-1] < SOON  # a save in place too


def ended(save: Save, root: Path, iteration: int) -> float:
    put(save, root, iteration, age=0.02)
    return time.monotonic()


def test_where_no_event_arrives_the_interval_finds_it(
    source: Path, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    """A network file system tells only of this machine's own writes, and makes no error of it."""
    watcher = watch(tmp_path, 0.5)
    assert watcher._events is not None
    watcher._events.stop()
    moment = later(lambda: save(source, tmp_path, 2))
    _, noticed = next_complete(watcher, 2)
    assert noticed - moment() < SOON


@pytest.mark.parametrize("call", ["start", "schedule"])
def test_without_events_the_interval_finds_it(
    source: Path,
    tmp_path: Path,
    watch: Callable[..., Watcher],
    call: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from watchdog.observers import Observer

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(Observer, call, refuse)
    with caplog.at_level(logging.WARNING):
        watcher = watch(tmp_path, 0.5)
    assert "inotify watch limit reached" in caplog.text
    moment = later(lambda: save(source, tmp_path, 2))
    _, noticed = next_complete(watcher, 2)
    assert noticed - moment() < SOON


def processor_seconds(threads: set[int]) -> float:
    """User and system time of these threads of this process: other tests' threads and the collector are not meant."""
    ticks = 0
    for thread in threads:
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def test_an_idle_watcher_wakes_nobody_and_uses_no_processor_time(
    source: Path, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    save(source, tmp_path, 2)
    before = threads()
    watcher = watch(tmp_path)
    own = threads() - before
    assert own
    for _ in range(5):  # looking must not wake itself: then no three seconds would ever be quiet
        used = processor_seconds(own)
        if not watcher.wait(3.0):
            break
        watcher.scan()
    else:
        pytest.fail("the watcher is woken again and again though nothing is written")
    assert processor_seconds(own) - used < 0.1


def test_many_unfinished_directories_cost_few_threads(
    source: Path, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    """A run with a broken disk may leave hundreds; the newest is the one that is being written."""
    for iteration in range(2, 402, 2):
        (tmp_path / f"iter_{iteration:07d}").mkdir()
    before = threading.active_count()
    watcher = watch(tmp_path)
    assert len(watcher.scan().waiting) == 200
    assert threading.active_count() - before < 20
    write(tmp_path / TRACKER, b"400", 0.0)
    (tmp_path / "iter_0000400").rmdir()
    moment = later(lambda: save(source, tmp_path, 400))
    _, noticed = next_complete(watcher, 400)
    assert noticed - moment() < SOON


def test_stop_ends_a_wait(tmp_path: Path, watch: Callable[..., Watcher]) -> None:
    watcher = watch(tmp_path)
    while watcher.wait(0.3):
        watcher.scan()
    threading.Timer(0.3, watcher.stop).start()
    assert not watcher.wait(None)  # else it waits for ever
