"""Objects as files: whole or not there, verified, and what was killed goes on where it was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoeval.storage import Aborted, Changed, ObjectStore, StorageError, Transfer, Vanished, Wanted
from autoeval.storage import transfer as transfer_module
from autoeval.storage.cached import cached_path
from tests.storage.conftest import Bucket
from tests.storage.stores import HOME

FILES = {"a": b"a" * 3000, "mp_rank_00/b": random.Random(1).randbytes(5000), "empty": b""}


def _wanted(store: ObjectStore, **ranges: tuple[tuple[int, int], ...]) -> list[Wanted]:
    return [Wanted(one, ranges.get(name)) for name, one in store.objects("it").items()]


@pytest.fixture
def store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(transfer_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(transfer_module, "RETRY_SECONDS", (0.05, 0.05))
    for name, content in FILES.items():
        bucket.put(f"run/it/{name}", content)
    return ObjectStore(bucket.url("run"))


def _before_read(monkeypatch: pytest.MonkeyPatch, action: Callable[[str, int | None], None]) -> None:
    """``action`` is called with the name and the place before each part is asked for."""
    read = ObjectStore.read

    def acting(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        action(name, start)
        return read(self, name, start, end)

    monkeypatch.setattr(ObjectStore, "read", acting)


def test_files_are_copied_with_their_times(store: ObjectStore, tmp_path: Path) -> None:
    wanted = _wanted(store)
    Transfer(store, "it", tmp_path / "x", wanted).run()
    assert {
        p.relative_to(tmp_path / "x").as_posix(): p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()
    } == FILES
    for one in wanted:
        assert (tmp_path / "x" / one.stored.name).stat().st_mtime_ns == one.stored.modified_ns


def test_what_is_not_needed_is_a_hole(store: ObjectStore, tmp_path: Path) -> None:
    wanted = _wanted(store, a=((0, 10), (2000, 2500)))
    assert sum(one.needed for one in wanted) == 510 + 5000
    Transfer(store, "it", tmp_path, wanted).run()
    content = (tmp_path / "a").read_bytes()
    assert content == b"a" * 10 + bytes(1990) + b"a" * 500 + bytes(500)


def test_a_killed_transfer_goes_on_with_what_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    """A process of its own is killed when some files are there; the next one asks for the others only."""
    for number in range(12):
        bucket.put(f"run/it/{number:02d}", random.Random(number).randbytes(200_000))
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from autoeval.storage import ObjectStore, Transfer, Wanted\n"
        "from autoeval.storage import transfer\n"
        "transfer.CHUNK_BYTES = 50_000\n"
        "store = ObjectStore(sys.argv[1])\n"
        "read = store.read\n"
        "store.read = lambda *a: (time.sleep(0.03), read(*a))[1]\n"
        "Transfer(store, 'it', Path(sys.argv[2]), [Wanted(o) for o in store.objects('it').values()], parallel=2).run()\n"
    )
    command = [sys.executable, "-c", script, bucket.url("run"), str(tmp_path / "x")]
    with subprocess.Popen(command, cwd=HOME) as process:
        deadline = time.monotonic() + 90
        while len(_whole(tmp_path / "x")) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    here = _whole(tmp_path / "x")
    assert 3 <= len(here) < 12
    for name in here:
        assert (tmp_path / "x" / name).read_bytes() == random.Random(int(name)).randbytes(200_000)
    store = ObjectStore(bucket.url("run"))
    before = len(_parts_asked_for(bucket))
    Transfer(store, "it", tmp_path / "x", _wanted(store)).run()
    asked = _parts_asked_for(bucket)[before:]
    assert set(asked) == {f"{n:02d}" for n in range(12)} - here
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [f"{n:02d}" for n in range(12)]  # nothing else is left


def _parts_asked_for(bucket: Bucket) -> list[str]:
    lines = [line.split()[1] for line in bucket.server.requests() if line.startswith("GET")]
    return [line[-2:] for line in lines if line.startswith(f"/{bucket.name}/run/it/")]


def _whole(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name[0] != "."} if directory.is_dir() else set()


def test_an_object_that_is_deleted_in_the_middle(
    bucket: Bucket, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _wanted(store)
    _before_read(
        monkeypatch, lambda name, start: bucket.delete("run/it/a") if name == "it/a" and start == 1000 else None
    )
    with pytest.raises(Vanished, match=r"run/it/a was deleted while it was copied"):
        Transfer(store, "it", tmp_path, wanted).run()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", [b"b" * 3000, b"b" * 1500, b"b" * 4000])
def test_an_object_that_is_uploaded_again_in_the_middle(
    content: bytes, bucket: Bucket, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, shorter, longer: half of one and half of the other is never taken for a file."""
    wanted = _wanted(store)
    _before_read(
        monkeypatch, lambda name, start: bucket.put("run/it/a", content) if name == "it/a" and start == 1000 else None
    )
    with pytest.raises((Changed, StorageError)) as raised:
        Transfer(store, "it", tmp_path, wanted).run()
    assert not (tmp_path / "a").exists()
    if not isinstance(raised.value, Changed):  # then the next attempt lists again, and sees it
        assert not raised.value.lasting


def test_one_that_is_uploaded_again_after_it_was_copied(
    bucket: Bucket, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _wanted(store)
    objects = ObjectStore.objects

    def changed_before_the_last_listing(self: ObjectStore, name: str = "") -> Any:
        bucket.put("run/it/empty", b"no longer")
        return objects(self, name)

    monkeypatch.setattr(ObjectStore, "objects", changed_before_the_last_listing)
    with pytest.raises(Changed, match="run/it/empty was uploaded again"):
        Transfer(store, "it", tmp_path, wanted).run()


def test_bytes_that_are_not_those_of_the_etag(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ObjectStore.read

    def damaged(self: ObjectStore, name: str, start: int | None = None, end: int | None = None) -> bytes:
        content = read(self, name, start, end)
        return b"?" + content[1:] if name == "it/a" and start == 2000 else content

    monkeypatch.setattr(ObjectStore, "read", damaged)
    with pytest.raises(StorageError, match="what came has the MD5"):
        Transfer(store, "it", tmp_path, _wanted(store)).run()
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(ObjectStore, "etag_is_md5", lambda self, name: False)  # as with keys of the store's own service
    Transfer(store, "it", tmp_path, _wanted(store)).run()


def test_a_request_that_fails_is_made_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: set[tuple[str, int | None]] = set()

    def once(name: str, start: int | None) -> None:
        if (name, start) not in failed:
            failed.add((name, start))
            raise StorageError("the store asks for fewer requests (SlowDown)")

    _before_read(monkeypatch, once)
    Transfer(store, "it", tmp_path, _wanted(store)).run()
    assert (tmp_path / "mp_rank_00" / "b").read_bytes() == FILES["mp_rank_00/b"]
    assert len(failed) == 8


def test_it_stops_when_it_is_told_to(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    _before_read(monkeypatch, lambda name, start: stop.set() if start == 1000 else None)
    with pytest.raises(Aborted):
        Transfer(store, "it", tmp_path, _wanted(store), stop=stop.is_set).run()


def test_nothing_is_fetched_behind_the_back_of_who_interrupts(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    interrupted = threading.Event()

    def interrupting(name: str, start: int | None) -> None:
        asked.append(start)
        if len(asked) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert interrupted.wait(90)

    _before_read(monkeypatch, interrupting)
    with pytest.raises(KeyboardInterrupt):
        Transfer(store, "it", tmp_path, _wanted(store), parallel=1).run()
    interrupted.set()
    for thread in threading.enumerate():
        if thread.name == "transfer":
            thread.join(90)
    assert len(asked) == 1


def test_a_file_or_a_directory_in_the_cache(
    bucket: Bucket, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOEVAL_CACHE", str(tmp_path / "cache"))
    file = cached_path(bucket.url("run/it/a"))
    assert file.read_bytes() == FILES["a"] and file.name == "a"
    assert cached_path(bucket.url("run/it/a")) == file
    directory = cached_path(bucket.url("run/it"))
    assert (directory / "mp_rank_00" / "b").read_bytes() == FILES["mp_rank_00/b"]
    bucket.put("run/it/a", b"other")
    assert cached_path(bucket.url("run/it/a")).read_bytes() == b"other"
    with pytest.raises(FileNotFoundError):
        cached_path(bucket.url("run/nothing"))
    assert list((tmp_path / "cache" / "models").iterdir())
    assert not [path for path in (tmp_path / "cache" / "partial").iterdir() if path.suffix != ".lock"]
