"""What was recorded of real runs is done again, change by change, to real files; the watcher looks after each change.

The recordings are in the shared reference. What is typical of them is also written out here, so that nothing depends
on them: two asynchronous saves in flight, a tracker seen empty, retention that deletes shards first, a save in place.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from checkpoint_files import TRACKER, clock, watcher

from autoeval.checkpoints import Checkpoint, iteration_of, unchanged

REFERENCE = Path("/work/shared/reference")
_LINE = re.compile(r"\s*([\d.]+)\s+(new|chg|GONE)\s+(?:(\d+)\s+)?(/\S+)\s*(?:'(.*)')?\s*")

ASYNC = """
   0.000 new        500 /iter_0000002/__0_0.distcp
   0.200 chg       1000 /iter_0000002/__0_0.distcp
   1.800 new        400 /iter_0000004/__0_0.distcp
   1.810 new          0 /iter_0000002/.metadata.tmp
   1.820 chg       1000 /iter_0000004/__0_0.distcp
   1.830 chg        300 /iter_0000002/.metadata.tmp
   1.840 new        300 /iter_0000002/.metadata
   1.840 GONE /iter_0000002/.metadata.tmp
   1.841 new          0 /iter_0000002/metadata.json
   1.842 chg         63 /iter_0000002/metadata.json
   1.850 new          0 /latest_checkpointed_iteration.txt ''
   1.860 chg          1 /latest_checkpointed_iteration.txt '2'
   1.940 new        300 /iter_0000004/.metadata
   1.941 new         63 /iter_0000004/metadata.json
   1.950 chg          0 /latest_checkpointed_iteration.txt ''
   1.960 chg          1 /latest_checkpointed_iteration.txt '4'
   2.100 GONE /iter_0000002/__0_0.distcp
   2.200 GONE /iter_0000002/.metadata
   2.300 GONE /iter_0000002/metadata.json
   2.445 new        100 /iter_0000006/__0_0.distcp
"""
IN_PLACE = """
   0.000 new          1 /latest_checkpointed_iteration.txt '2'
   0.000 new       1000 /iter_0000002/__0_0.distcp
   0.000 new       1000 /iter_0000002/__0_1.distcp
   0.000 new        500 /iter_0000002/common.pt
   0.000 new        300 /iter_0000002/.metadata
   0.000 new        119 /iter_0000002/metadata.json
  13.500 chg        500 /iter_0000002/common.pt
  13.900 chg          0 /iter_0000002/__0_0.distcp
  13.910 chg        600 /iter_0000002/__0_0.distcp
  13.920 chg          0 /iter_0000002/__0_1.distcp
  13.930 chg       1000 /iter_0000002/__0_0.distcp
  13.940 chg       1000 /iter_0000002/__0_1.distcp
  17.300 new          0 /iter_0000002/.metadata.tmp
  17.310 chg        300 /iter_0000002/.metadata.tmp
  17.320 GONE /iter_0000002/.metadata
  17.330 new        300 /iter_0000002/.metadata
  17.330 GONE /iter_0000002/.metadata.tmp
  17.331 chg        119 /iter_0000002/metadata.json
  17.340 chg          0 /latest_checkpointed_iteration.txt ''
  17.350 chg          1 /latest_checkpointed_iteration.txt '2'
"""
RECORDINGS = {
    "async": (ASYNC, [2, 4]),
    "in place": (IN_PLACE, [2, 2]),
    "recorded async": ("megatron-async-save-events.txt", [2, 4, 6, 8, 10, 12]),
    "recorded in place": ("megatron-inplace-resave-events.txt", [2, 2]),
}


@dataclass(frozen=True)
class Change:
    """One line of a recording: at ``seconds`` the file had ``size`` bytes (``None``: it was gone)."""

    seconds: float
    path: str
    size: int | None
    content: str | None


def parse(text: str) -> list[Change]:
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        assert match, line
        seconds, kind, size, path, content = match.groups()
        assert (kind == "GONE") == (size is None), line
        found.append(Change(float(seconds), path.lstrip("/"), None if size is None else int(size), content))
    return found


@dataclass
class Replayer:
    """Does the changes under ``root``. A file's bytes are those of a real one, cut short where the recorded one was.

    The weights of a save are those of its ``version``; a shard that is truncated begins the next version of its
    directory, and what belongs to it (``common.pt``, ``.metadata``) is of the same version as the shards.
    """

    root: Path
    changes: list[Change]
    versions: list[dict[str, bytes]]
    begins: float
    now: float = 0.0
    full: dict[str, int] = field(default_factory=dict)
    version: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = self.begins
        for change in self.changes:
            self.full[change.path] = max(self.full.get(change.path, 0), change.size or 0)

    def run(self) -> Iterator[Change]:
        saved = {path for path in self.full if path.endswith("metadata.json")}
        seen: set[str] = set()
        for change in self.changes:
            self.now = self.begins + change.seconds
            path = self.root / change.path
            directory, _, name = change.path.rpartition("/")
            if change.path in seen and name == "common.pt":
                self.version[directory] = 1  # the second save begins
            seen.add(change.path)
            assert directory == "" or f"{directory}/metadata.json" in saved or "metadata.json" not in name
            if change.size is None:
                path.unlink(missing_ok=True)
            else:
                self._write(change, path, directory, name)
            for touched in (path, path.parent):
                if touched.exists():
                    os.utime(touched, (self.now, self.now))
            yield change

    def _write(self, change: Change, path: Path, directory: str, name: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == TRACKER:
            content = (change.content or "").encode()
        else:
            whole = self.versions[self.version.get(directory, 0)][name.removesuffix(".tmp")]
            assert change.size is not None
            content = whole[: len(whole) * change.size // max(1, self.full[change.path])]
        path.write_bytes(content)

    def whole_version(self, directory: Path) -> int | None:
        """Which save the files of ``directory`` are, all of them and whole: the truth that the watcher must not miss."""
        for number, files in enumerate(self.versions):
            parts = [name for name in files if name != "metadata.json"]
            if all(_bytes(directory / name) == files[name] for name in parts):
                return number
        return None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def real_files(place: Path, shards: int, with_common: bool, version: int) -> dict[str, bytes]:
    """A distributed checkpoint in as many shards as the recorded one had."""
    import torch
    import torch.distributed.checkpoint as dcp

    state = {f"decoder.layers.{n}.weight": torch.full((64, 8), float(version + n)) for n in range(shards)}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(place, thread_count=shards), no_dist=True)
    mark = '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
    if with_common:
        torch.save({"iteration": version}, place / "common.pt")
        mark = mark[:-1] + ', "common_backend": "torch", "common_backend_version": 1}'
    (place / "metadata.json").write_text(mark)
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture
def replayer(request: pytest.FixtureRequest, tmp_path: Path) -> Replayer:
    text, _ = RECORDINGS[request.param]
    if text.endswith(".txt"):
        if not (REFERENCE / text).is_file():
            pytest.skip(f"the recording {REFERENCE / text} is not here")
        text = (REFERENCE / text).read_text()
    changes = parse(text)
    names = {Path(change.path).name for change in changes}
    shards = len({name for name in names if name.endswith(".distcp")})
    versions = []
    for version in (1, 2):
        place = tmp_path / f"version{version}"
        versions.append(real_files(place, shards, "common.pt" in names, version))
    assert {name: len(content) for name, content in versions[0].items() if name != "common.pt"} == {
        name: len(content) for name, content in versions[1].items() if name != "common.pt"
    }
    return Replayer(tmp_path / "save", changes, versions, time.time() - 1000.0)


@pytest.mark.parametrize("stays_alive", [True, False], ids=["one watcher", "a new watcher each time"])
@pytest.mark.parametrize(("replayer", "expected"), [(n, e) for n, (_, e) in RECORDINGS.items()], indirect=["replayer"])
def test_a_recorded_run_is_seen_as_it_was(replayer: Replayer, expected: list[int], stays_alive: bool) -> None:
    """Never complete before its bytes are all there, complete at the end of each save, never again after deletion."""
    first: dict[str, Checkpoint] = {}
    trackers: list[str] = []
    kept = watcher(replayer.root)
    with clock(lambda: replayer.now):
        for change in replayer.run():
            looking = kept if stays_alive else watcher(replayer.root)
            for checkpoint in looking.scan().complete:
                assert replayer.whole_version(checkpoint.path) is not None, f"{checkpoint.path.name} at {change}"
                first.setdefault(checkpoint.fingerprint, checkpoint)
            if change.content:
                trackers.append(change.content)
                complete = {c.iteration for c in looking.scan().complete}
                settled = change is replayer.changes[-1] or change.seconds != _next(replayer, change).seconds
                if settled:  # several changes of one poll of the recorder: their order is not known
                    assert int(change.content) in complete, f"not noticed at once: {change}"
    assert [checkpoint.iteration for checkpoint in first.values()] == expected
    assert [int(value) for value in trackers if value] == expected
    last = list(first.values())[-1]
    assert unchanged(last)
    assert replayer.whole_version(last.path) == (1 if expected == [2, 2] else 0)


def _next(replayer: Replayer, change: Change) -> Change:
    return replayer.changes[replayer.changes.index(change) + 1]


@pytest.mark.parametrize("replayer", ["async", "recorded async"], indirect=True)
def test_two_asynchronous_saves_in_flight_are_waited_for(replayer: Replayer) -> None:
    """Both have full shards and no marks: neither is abandoned, even when the first has long stopped growing."""
    waiting: list[set[int]] = []
    with clock(lambda: replayer.now):
        for _ in replayer.run():
            found = watcher(replayer.root).scan()
            waiting.append({iteration for iteration, _ in found.waiting})
            gone = {iteration_of(path.name) for path in replayer.root.glob("iter_*") if not list(path.glob("*.distcp"))}
            assert {iteration for iteration, _ in found.abandoned} <= gone
    assert {2, 4} in waiting
