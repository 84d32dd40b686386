"""Whatever part of a checkpoint has been uploaded, in whatever order and at whatever pace: no half model is complete."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import fsspec
import pytest

from autoeval.checkpoints import Checkpoint, ScanResult, SettleTimes, Watcher
from autoeval.storage import ObjectStore, StorageError
from tests.storage.conftest import Bucket
from tests.waiting import wait_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoints"))
from checkpoint_files import LAYOUTS, TRACKER, Save, clock, make

BEGINS = 1_800_000_000.0
Saves = Callable[[str], tuple[Save, Save]]


@pytest.fixture(scope="session")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Saves:
    made: dict[str, tuple[Save, Save]] = {}

    def get(layout: str) -> tuple[Save, Save]:
        if layout not in made:
            first, second = (make(layout, tmp_path_factory.mktemp(layout), version) for version in (1, 2))
            made[layout] = first, second
        return made[layout]

    return get


class Uploads:
    """Objects in fsspec's memory, with the times that they are given. ``now`` is the store's clock and ours."""

    def __init__(self, name: str) -> None:
        self.url = f"memory://{name}/run"
        self.now = BEGINS
        self._files = fsspec.filesystem("memory")
        self._root = f"/{name}/run"

    def put(self, key: str, content: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{key}", content)
        whole_second = datetime.fromtimestamp(int(self.now), timezone.utc)  # as S3 tells it
        self._files.store[f"{self._root}/{key}"].created = whole_second

    def content(self, key: str) -> bytes | None:
        found = self._files.store.get(f"{self._root}/{key}")
        return None if found is None else bytes(found.getvalue())

    def remove(self) -> None:
        for key in [key for key in self._files.store if key.startswith(self._root)]:
            del self._files.store[key]


@pytest.fixture
def uploads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    monkeypatch.setattr(
        "autoeval.checkpoints.saves.RELIST_SECONDS", 0.0
    )  # what is complete is listed at every look too
    made = Uploads(request.node.name.translate(str.maketrans("[]/-", "____")))
    with clock(lambda: made.now):
        yield made
    made.remove()


def _watcher(url: str, save: Save | None = None, **options: object) -> Watcher:
    return Watcher(
        ObjectStore(url),
        "gpt",
        token_per_iteration=0.5,
        begin=2,
        end=None,
        interval=2,
        check_interval_seconds=3600.0,
        model_type="megatron" if save is None else save.model_type,
        **options,  # type: ignore[arg-type]
    )


def _complete(watcher: Watcher) -> Checkpoint:
    """The one there is, once the seconds that S3 counts in tell that the tracker was not uploaded before it."""
    deadline = time.monotonic() + 90
    while not (found := watcher.scan().complete):
        assert time.monotonic() < deadline, watcher.scan()
        time.sleep(0.2)
    return found[-1]


def _version(uploads: Uploads, directory: str, versions: tuple[Save, Save]) -> int | None:
    """Of which save the weights there are, all of them and whole."""
    for number, save in enumerate(versions):
        if all(uploads.content(f"{directory}/{name}") == save.files[name] for name in save.weights):
            return number
    return None


def _order(save: Save, directory: str, chance: random.Random) -> list[tuple[str, bytes]]:
    """All that is uploaded, the tracker too, in any order; of some files first a part."""
    files = {f"{directory}/{name}": content for name, content in {**save.files, **save.after}.items()}
    if save.model_type == "megatron":
        files[TRACKER] = b"4"
    order = list(files.items())
    chance.shuffle(order)
    for name, content in chance.sample(order, 2):
        if len(content) > 1:
            order.insert(order.index((name, content)), (name, content[: chance.randrange(1, len(content))]))
    return order


@pytest.mark.parametrize("layout", LAYOUTS)
def test_uploads_in_any_order_and_at_any_pace(layout: str, uploads: Uploads, saves: Saves) -> None:
    """First a save, then, much later, another one over it with the same names and sizes. What is found complete is always
    the one or the other, by a watcher that has seen it all and by one that has just begun."""
    versions = saves(layout)
    directory = versions[0].directory(Path(), 4).name
    for seed in range(6):
        chance = random.Random(seed)
        kept = _watcher(uploads.url, versions[0])
        found: list[int] = []
        fingerprints: set[str] = set()
        for save in versions:
            pace = chance.choice([0.3, 4.0, 70.0])
            for key, content in _order(save, directory, chance):
                uploads.put(key, content)
                uploads.now += chance.random() * pace
                for watcher in (kept, _watcher(uploads.url, versions[0])):
                    for checkpoint in watcher.scan().complete:
                        version = _version(uploads, directory, versions)
                        assert version is not None, f"seed {seed}: taken for complete after {key}"
                        fingerprints.add(checkpoint.fingerprint)
            uploads.now += 120.0 + 6 * pace
            result = kept.scan()
            assert len(result.complete) == 1, f"seed {seed}: {result}"
            (checkpoint,) = result.complete
            version = _version(uploads, directory, versions)
            assert version is not None
            found.append(version)
            fingerprints.add(checkpoint.fingerprint)
            assert (checkpoint.iteration, checkpoint.url) == (4, f"{uploads.url}/{directory}")
            uploads.now += 90_000.0
        assert found == [0, 1]
        assert len(fingerprints) == 2
        uploads.remove()


def test_a_save_that_ends_with_its_tracker_is_complete_at_once(uploads: Uploads, saves: Saves) -> None:
    """As Megatron itself saves to a store."""
    save, again = saves("torch_dist")
    watcher = _watcher(uploads.url)
    for one in (save, again):
        for name, content in one.files.items():
            uploads.put(f"iter_0000004/{name}", content)
            assert watcher.scan().complete == ()
            uploads.now += 2.0
        uploads.put(TRACKER, b"4")
        (checkpoint,) = watcher.scan().complete
        assert checkpoint.tokens == 2.0 and checkpoint.format == "torch_dist"
        uploads.now += 5.0  # the next one begins at once


def test_the_marks_come_before_the_shards(uploads: Uploads, saves: Saves) -> None:
    """As ``aws s3 sync`` uploads, by name; .metadata names every shard with the bytes that it must have."""
    save, _ = saves("torch_dist")
    shards = [name for name in save.files if name.endswith(".distcp")]
    uploads.put(TRACKER, b"4")
    for name in sorted(set(save.files) - set(shards)):
        uploads.put(f"iter_0000004/{name}", save.files[name])
    watcher = _watcher(uploads.url)
    assert watcher.scan().waiting in [((4, f"{shard} is missing"),) for shard in shards]
    uploads.put(f"iter_0000004/{shards[0]}", save.files[shards[0]])
    assert watcher.scan().waiting == ((4, f"{shards[1]} is missing"),)
    uploads.put(f"iter_0000004/{shards[1]}", save.files[shards[1]][:-100])
    ((_, reason),) = watcher.scan().waiting
    assert f"{shards[1]} has " in reason and ".metadata says at least" in reason
    uploads.put(f"iter_0000004/{shards[1]}", save.files[shards[1]])
    assert watcher.scan().complete == ()
    uploads.now += 12.0
    assert [one.iteration for one in watcher.scan().complete] == [4]


def test_the_settle_time_of_uploads_can_be_set(uploads: Uploads, saves: Saves) -> None:
    save, _ = saves("huggingface_shards")
    for name, content in save.files.items():
        uploads.put(f"checkpoint-4/{name}", content)
    assert _watcher(uploads.url, save, settle=SettleTimes(upload=0.0)).scan().complete == ()  # a store's second
    uploads.now += 1.5
    assert _watcher(uploads.url, save, settle=SettleTimes(upload=0.0)).scan().complete
    assert not _watcher(uploads.url, save).scan().complete


def test_one_look_is_few_requests(bucket: Bucket, saves: Saves) -> None:
    """One listing of the prefix, one of each directory that is not known to be complete; nothing is read again."""
    save, _ = saves("torch_dist")
    for iteration in (2, 4, 6):
        for name, content in save.files.items():
            if iteration < 6 or not name.endswith(".distcp"):
                bucket.put(f"run/iter_{iteration:07d}/{name}", content)
    bucket.put(f"run/{TRACKER}", b"4")
    watcher = _watcher(bucket.url("run"))

    def look() -> list[str]:
        before = len(bucket.server.requests())
        assert [one.iteration for one in watcher.scan().complete] == [2, 4]
        return bucket.server.requests()[before:]

    wait_for(lambda: len(watcher.scan().complete) == 2)  # one of them may come a second later
    look()
    time.sleep(0.1)
    again = look()
    assert sum("list-type=2" in line for line in again) == 2, again
    assert not any(".metadata" in line or "distcp" in line or "0000002" in line for line in again), again
    bucket.put(f"run/{TRACKER}", b"6")
    moved = look()
    assert sum("list-type=2" in line for line in moved) == 4, moved


def test_the_same_bytes_uploaded_again_are_the_same_checkpoint(bucket: Bucket, saves: Saves) -> None:
    save, again = saves("torch_dist")
    marks: list[str] = []
    for one in (save, save, again):
        for name, content in one.files.items():
            bucket.put(f"run/iter_0000004/{name}", content)
        bucket.put(f"run/{TRACKER}", b"4")
        marks.append(_complete(_watcher(bucket.url("run"))).fingerprint)
    assert marks[0] == marks[1] != marks[2]


def test_a_store_that_is_away_is_asked_again(
    bucket: Bucket, saves: Saves, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is concluded meanwhile; it is said once, and once more when it is over."""
    save, _ = saves("torch_dist")
    for name, content in save.files.items():
        bucket.put(f"run/iter_0000004/{name}", content)
    bucket.put(f"run/{TRACKER}", b"4")
    monkeypatch.setattr("autoeval.checkpoints.watch.FAR_PENDING_SECONDS", 0.05)
    caplog.set_level("INFO")
    children, away = ObjectStore.children, [True]

    def failing(self: ObjectStore, name: str = "") -> object:
        if away[0]:
            raise StorageError(f"{self.url}: the endpoint cannot be reached")
        return children(self, name)

    monkeypatch.setattr(ObjectStore, "children", failing)
    watcher = _watcher(bucket.url("run"))
    watcher.start()
    try:
        results: list[ScanResult] = [watcher.scan()]
        assert results[0].trouble  # it has not been looked at yet
        for _ in range(3):
            assert watcher.wait(90.0)
            results.append(watcher.scan())
        assert {result.trouble for result in results[1:]} == {f"{bucket.url('run')}: the endpoint cannot be reached"}
        assert not any(result.complete or result.waiting for result in results)
        away[0] = False
        while not (found := watcher.scan()).complete:  # of what came within one second the order is not known at once
            assert watcher.wait(90.0)
        assert [one.iteration for one in found.complete] == [4] and not found.trouble
    finally:
        watcher.stop()
    assert [record.message for record in caplog.records if "cannot be reached" in record.message].__len__() == 1
    assert any("answers again" in record.message for record in caplog.records)


def test_it_looks_by_itself_every_so_often(bucket: Bucket, saves: Saves) -> None:
    """No events come from a store: what is uploaded while it watches is found by the interval."""
    save, _ = saves("torch_dist")
    watcher = _watcher(bucket.url("run"))
    assert watcher.check_interval_seconds == 60.0  # an hour was asked for: events would have told
    watcher.check_interval_seconds = 0.5
    watcher.start()
    try:
        watcher.wait(90.0)
        for name, content in save.files.items():
            bucket.put(f"run/iter_0000004/{name}", content)
        bucket.put(f"run/{TRACKER}", b"4")
        deadline = time.monotonic() + 90
        while not watcher.scan().complete:
            assert watcher.wait(90.0) and time.monotonic() < deadline
    finally:
        watcher.stop()


def test_an_object_that_may_not_be_read_keeps_the_others_from_nothing(
    bucket: Bucket, saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old checkpoints are often archived (Glacier): they are listed, and cannot be read."""
    save, _ = saves("torch_dist")
    for iteration in (2, 4):
        for name, content in save.files.items():
            bucket.put(f"run/iter_{iteration:07d}/{name}", content)
    bucket.put(f"run/{TRACKER}", b"4")
    read = ObjectStore.read

    def archived(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if "iter_0000002" in name:
            raise StorageError("the object is archived (Glacier): restore it first", lasting=True)
        return read(self, name, start, end)

    monkeypatch.setattr(ObjectStore, "read", archived)
    watcher = _watcher(bucket.url("run"))
    assert _complete(watcher).iteration == 4
    result = watcher.scan()
    assert [one.iteration for one in result.complete] == [4]
    assert result.waiting == ((2, "the object is archived (Glacier): restore it first"),)
