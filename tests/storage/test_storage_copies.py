"""Pinning by copy: what a conversion needs, whole or not at all, in the order of turns, within the room there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from autoeval import copies as copies_module
from autoeval.checkpoints import (
    Checkpoint,
    CheckpointChanged,
    CheckpointVanished,
    SettleTimes,
    Watcher,
    is_copied,
    plan_copy,
    unchanged,
)
from autoeval.copies import Copies
from autoeval.storage import ObjectStore, StorageError
from autoeval.storage import transfer as transfer_module
from autoeval.tasks.converted import NoRoomError
from tests.storage.conftest import Bucket

_KNOWN: dict[Copies, list[tuple[Checkpoint, Exception | None]]] = {}
BEFORE = 3 << 20  # elements of an optimizer's tensor: 12 MB, more than is fetched to save a request


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A distributed checkpoint whose storage files hold weights and, many more bytes, the optimizer's states."""
    import torch
    import torch.distributed.checkpoint as dcp

    place = tmp_path_factory.mktemp("save")
    torch.manual_seed(1)
    state = {"decoder.layers.weight": torch.randn(4, 100), "embedding.word_embeddings.weight": torch.randn(8, 100)}
    state |= {f"optimizer.state.exp_avg.{name}": torch.randn(BEFORE) for name in ("a", "b")}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(place, thread_count=2), no_dist=True)
    (place / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture
def files(request: pytest.FixtureRequest) -> Iterator[Callable[[str, bytes | None], None]]:
    """Puts an object into fsspec's memory, or takes it out."""
    root = f"/{request.node.originalname}"
    memory = fsspec.filesystem("memory")

    def put(key: str, content: bytes | None) -> None:
        if content is None:
            memory.rm(f"{root}/{key}")
        else:
            memory.pipe_file(f"{root}/{key}", content)

    yield put
    for key in [key for key in memory.store if key.startswith(f"{root}/")]:
        del memory.store[key]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.originalname}"


def _upload(put: Callable[[str, bytes | None], None], save: dict[str, bytes], *iterations: int) -> None:
    for iteration in iterations:
        for name, content in save.items():
            put(f"iter_{iteration:07d}/{name}", content)


def _found(url: str, copies: Path) -> dict[int, Checkpoint]:
    watcher = Watcher(
        ObjectStore(url), "gpt", token_per_iteration=None, begin=2, end=None, interval=2,
        check_interval_seconds=9.0, settle=SettleTimes(upload=0, marks=0, behind=0), copies=copies,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (found := watcher.scan()).complete or found.waiting:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return {one.iteration: one for one in found.complete}


def _outcome(copies: Copies) -> tuple[Checkpoint, Exception | None]:
    """The next one; several may have ended since the last question."""
    deadline = time.monotonic() + 90
    known = _KNOWN.setdefault(copies, [])
    while not known:
        known += copies.ended()
        assert known or time.monotonic() < deadline, "nothing was copied"
        time.sleep(0.01)
    return known.pop(0)


def test_only_what_a_conversion_reads_comes_over_the_wire(
    bucket: Bucket, save: dict[str, bytes], tmp_path: Path
) -> None:
    from autoeval.convert.dcp_store import DcpStore

    _upload(lambda key, content: bucket.put(f"run/{key}", content or b""), save | {"hf/x": b"no", "optim.pt": b"no"}, 2)
    checkpoint = _found(bucket.url("run"), tmp_path)[2]
    copying = plan_copy(checkpoint, ObjectStore(bucket.url("run")))
    whole = sum(map(len, save.values()))
    assert copying.needed < whole - 2 * 4 * BEFORE + (1 << 20)
    assert not is_copied(checkpoint) and not unchanged(checkpoint)
    copying.run()
    assert is_copied(checkpoint) and unchanged(checkpoint)  # its fingerprint is that of the objects
    assert {path.name for path in checkpoint.path.iterdir()} == set(save)
    assert sum(path.stat().st_blocks * 512 for path in checkpoint.path.iterdir()) < 1 << 20
    here, weights = DcpStore(checkpoint.path), tmp_path / "weights"
    weights.mkdir()
    for name, content in save.items():
        (weights / name).write_bytes(content)
    for key in ("decoder.layers.weight", "embedding.word_embeddings.weight"):
        assert here.read([(key, ())]).equal(DcpStore(weights).read([(key, ())]))
    assert plan_copy(checkpoint, ObjectStore(bucket.url("run"))).needed == 0
    (checkpoint.path / ".metadata").touch()
    assert not unchanged(checkpoint)  # what has been changed here is no copy any more, and is fetched again
    assert plan_copy(checkpoint, ObjectStore(bucket.url("run"))).needed == len(save[".metadata"])


def test_checkpoints_are_copied_in_turn_and_only_so_many(
    url: str, files: Callable[[str, bytes | None], None], save: dict[str, bytes], tmp_path: Path
) -> None:
    _upload(files, save, 2, 4, 6)
    found = _found(url, tmp_path)
    changed = threading.Event()
    copies = Copies(ObjectStore(url), tmp_path, most=2)
    copies.on_change = changed.set
    copies.want([found[6], found[2], found[4]])
    assert [_outcome(copies), _outcome(copies)] == [(found[6], None), (found[2], None)]
    assert changed.is_set() and is_copied(found[6]) and is_copied(found[2])
    time.sleep(0.2)
    assert not copies.ended() and not is_copied(found[4])
    copies.drop(found[6])
    assert _outcome(copies) == (found[4], None)
    assert not found[6].path.exists()
    copies.close()
    copies.drop(found[4])
    assert is_copied(found[4])  # the end of the daemon costs nothing that was copied

    again = Copies(ObjectStore(url), tmp_path, most=2)
    assert again.hold(found[4]) and not again.hold(found[6])
    assert again.find(found[2].fingerprint) == (found[2].path, "torch_dist")
    again.sweep({found[4].path})
    assert is_copied(found[4]) and not found[2].path.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [found[4].path.name, f"{found[4].path.name}.copy.json"]


def test_one_that_is_uploaded_again_in_the_middle_is_thrown_away_and_copied_anew(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _upload(files, save, 2)
    before = _found(url, tmp_path)[2]
    done: list[str] = []
    chunk = transfer_module.Transfer._chunk

    def uploading(self: transfer_module.Transfer, stored: object, start: int, end: int) -> bytes:
        if not done:
            done.append("once")
            _upload(files, save, 2)
        return chunk(self, stored, start, end)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer_module.Transfer, "_chunk", uploading)
    copies = Copies(ObjectStore(url), tmp_path)
    copies.want([before])
    checkpoint, outcome = _outcome(copies)
    assert checkpoint == before and isinstance(outcome, CheckpointChanged)
    assert not list(tmp_path.iterdir())
    after = _found(url, tmp_path)[2]
    assert after.fingerprint != before.fingerprint
    copies.want([after])
    assert _outcome(copies) == (after, None)
    copies.close()


def test_one_that_is_deleted_in_the_middle_is_no_half_checkpoint(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _upload(files, save, 2, 4)
    found = _found(url, tmp_path)
    read = ObjectStore.read

    def deleting(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        content = read(self, name, start, end)
        if name == "iter_0000002/metadata.json":
            files("iter_0000002/__0_0.distcp", None)
        return content

    monkeypatch.setattr(ObjectStore, "read", deleting)
    copies = Copies(ObjectStore(url), tmp_path, parallel=1)
    copies.want([found[2], found[4]])
    checkpoint, outcome = _outcome(copies)
    assert checkpoint == found[2] and isinstance(outcome, CheckpointVanished)
    assert "iter_0000002" in str(outcome) and "deleted" in str(outcome)
    assert _outcome(copies) == (found[4], None)
    assert not found[2].path.exists()
    copies.close()


def test_a_store_that_is_away_is_tried_again(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _upload(files, save, 2)
    checkpoint = _found(url, tmp_path)[2]
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    objects, failures = ObjectStore.objects, iter([True, True])

    def away(self: ObjectStore, name: str = "") -> object:
        if next(failures, False):
            raise StorageError(f"{self.url}: the endpoint cannot be reached")
        return objects(self, name)

    monkeypatch.setattr(ObjectStore, "objects", away)
    copies = Copies(ObjectStore(url), tmp_path)
    copies.want([checkpoint])
    for _ in range(2):
        assert "the endpoint cannot be reached" in str(_outcome(copies)[1])
    assert _outcome(copies) == (checkpoint, None)
    copies.close()


def test_one_with_an_archived_object_waits_and_the_others_do_not(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small objects are not archived with the big ones, so it looks complete; in the end somebody restores them."""
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    _upload(files, save, 2, 4, 6)
    found = _found(url, tmp_path)
    read, restored = ObjectStore.read, threading.Event()

    def reading(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if name.startswith("iter_0000002/") and name.endswith(".distcp") and not restored.is_set():
            raise StorageError(f"{name}: the object is archived (Glacier): restore it first", lasting=True)
        return read(self, name, start, end)

    monkeypatch.setattr(ObjectStore, "read", reading)
    copies = Copies(ObjectStore(url), tmp_path, most=3)
    copies.want([found[2], found[4], found[6]])
    assert "archived" in str(_outcome(copies)[1])
    assert [_outcome(copies), _outcome(copies)] == [(found[4], None), (found[6], None)]
    restored.set()
    while (ended := _outcome(copies))[1] is not None:
        assert "archived" in str(ended[1])
    assert ended == (found[2], None)
    copies.close()


def test_what_does_not_fit_is_told_with_its_figures(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    _upload(files, save, 2, 4)
    found = _found(url, tmp_path)
    none = Copies(ObjectStore(url), tmp_path, budget=100)
    none.want([found[2]])
    _, outcome = _outcome(none)
    assert isinstance(outcome, NoRoomError) and "copies.disk_gb" in str(outcome)
    none.close()
    needed = plan_copy(found[2], ObjectStore(url)).needed
    for_one = Copies(ObjectStore(url), tmp_path, budget=needed + 10)
    for_one.want([found[2], found[4]])
    assert _outcome(for_one) == (found[2], None)
    assert isinstance(_outcome(for_one)[1], OSError)  # there will be room: it waits
    for_one.drop(found[2])
    while (ended := _outcome(for_one))[1] is not None:
        pass
    assert ended == (found[4], None)
    for_one.close()


@pytest.mark.parametrize("slow", [True, False], ids=["while it is removed", "when the next was just refused"])
def test_room_that_is_about_to_be_there_is_waited_for(
    slow: bool,
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    _upload(files, save, 2, 4)
    found = _found(url, tmp_path)
    copies = Copies(ObjectStore(url), tmp_path, budget=plan_copy(found[2], ObjectStore(url)).needed + 10)
    copies.want([found[2]])
    assert _outcome(copies) == (found[2], None)
    refused, removed = threading.Semaphore(0), threading.Event()
    check_room, remove = Copies._check_room, copies_module.remove_copy

    def checking(self: Copies, checkpoint: Checkpoint, needed: int) -> None:
        try:
            check_room(self, checkpoint, needed)
        except Exception:
            refused.release()
            assert slow or removed.wait(90)
            raise

    def removing(directory: Path) -> None:
        assert not slow or (refused.acquire(timeout=90) and refused.acquire(timeout=90))
        remove(directory)

    monkeypatch.setattr(Copies, "_check_room", checking)
    monkeypatch.setattr(copies_module, "remove_copy", removing)
    copies.want([found[4]])
    assert refused.acquire(timeout=90)
    copies.drop(found[2])
    removed.set()
    while (ended := _outcome(copies))[1]:
        assert isinstance(ended[1], OSError), ended
    assert ended == (found[4], None)
    copies.close()


def test_files_that_broke_off_in_the_middle_take_no_room_from_the_next_attempt(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither those of an attempt that failed nor those of a process that was killed."""
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(transfer_module, "CHUNK_BYTES", 4096)
    _upload(files, save | {"run_config.yaml": b"#" * (1 << 20)}, 2)
    checkpoint = _found(url, tmp_path)[2]
    read, failed = ObjectStore.read, list[str]()

    def breaking(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if name.endswith("run_config.yaml") and start == (1 << 20) - 4096 and not failed:
            failed.append(name)
            raise StorageError(f"{name}: access is denied", lasting=True)
        return read(self, name, start, end)

    monkeypatch.setattr(ObjectStore, "read", breaking)
    checkpoint.path.mkdir(parents=True)
    (checkpoint.path / ".x.1234.part").write_bytes(bytes(1 << 20))
    needed = plan_copy(checkpoint, ObjectStore(url)).needed
    copies = Copies(ObjectStore(url), tmp_path, parallel=1, budget=needed + (1 << 19))
    copies.want([checkpoint])
    assert isinstance(_outcome(copies)[1], StorageError)
    assert _outcome(copies) == (checkpoint, None)
    copies.close()


def test_closing_stops_a_copy_and_the_next_start_goes_on_with_it(
    url: str,
    files: Callable[[str, bytes | None], None],
    save: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _upload(files, save, 2)
    checkpoint = _found(url, tmp_path)[2]
    first = Copies(ObjectStore(url), tmp_path, parallel=1)
    read, asked = ObjectStore.read, []

    def closing(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        content = read(self, name, start, end)
        asked.append(name)
        if start is not None and len([one for one in asked if "distcp" in one]) == 1:
            first.close()
        return content

    monkeypatch.setattr(ObjectStore, "read", closing)
    first.want([checkpoint])
    assert first._thread is not None
    first._thread.join(90)
    assert not first._thread.is_alive() and not is_copied(checkpoint)
    here = {path.name for path in checkpoint.path.iterdir() if path.name.endswith(".distcp")}
    asked.clear()
    second = Copies(ObjectStore(url), tmp_path, parallel=1)
    second.want([checkpoint])
    assert _outcome(second) == (checkpoint, None)
    assert len(here) == 1 and not any(name.endswith(next(iter(here))) for name in asked)
    second.close()
