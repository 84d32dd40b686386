"""One run under watch in a store, without a worker: what the ledger says of a checkpoint from its upload to its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from autoeval.config import load_config
from autoeval.planning import WatchOptions
from autoeval.storage import ObjectStore, StorageError
from autoeval.watched_run import WatchedRun
from autoeval.yaml_file import ConfigError
from tests.storage.stores import SECRET_KEY

CONFIG = """
auto_eval:
  project_name: p
  model_name: m
  work_dir: out
  huggingface: {checkpoint_path: "%s", settle_seconds: {upload: 0}}
  icl: {datasets: [piqa_ppl]}
  order: oldest-first
"""
TASKS = [("t", "v")]


class Project:
    def __init__(self, directory: Path, name: str) -> None:
        self.root = f"/{name}"
        self.memory = fsspec.filesystem("memory")
        self.file = directory / "evaluator.yaml"
        self.file.write_text(CONFIG % f"memory://{name}")
        self.runs: list[WatchedRun] = []

    def upload(self, *iterations: int, weights: bytes = b"w") -> None:
        header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
        for iteration in iterations:
            files = {
                "model.safetensors": len(header).to_bytes(8, "little") + header + weights,
                "config.json": b"{}",
                "optimizer.pt": b"o" * 100,
            }
            for name, content in files.items():
                self.memory.pipe_file(f"{self.root}/checkpoint-{iteration}/{name}", content)

    def delete(self, iteration: int) -> None:
        self.memory.rm(f"{self.root}/checkpoint-{iteration}", recursive=True)

    def start(self) -> WatchedRun:
        (config,) = load_config(self.file)
        run = WatchedRun(config, WatchOptions(interval=2, model_type="huggingface"), TASKS)
        self.runs.append(run)
        return run

    def states(self) -> dict[int, tuple[str, str | None]]:
        rows = self.runs[-1].ledger.checkpoints()
        return {row.iteration: (row.state, row.error) for row in rows if not row.superseded}


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr("autoeval.checkpoints.uploads.STORE_TICK_SECONDS", 0.0)  # this store counts finer than seconds
    monkeypatch.setattr("autoeval.checkpoints.saves.RELIST_SECONDS", 0.0)
    monkeypatch.setattr("autoeval.copies.FIRST_WAIT_SECONDS", 0.05)
    made = Project(tmp_path, request.node.originalname)
    yield made
    for run in made.runs:
        run.close()
    made.memory.store.clear()


def _until(condition: Callable[[], bool], run: WatchedRun) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
        run.take_in_copies()


def _scan_until_found(run: WatchedRun, iteration: int) -> None:
    deadline = time.monotonic() + 90
    while not any(entry.ref.iteration == iteration for entry in run.entries.values()):
        assert time.monotonic() < deadline
        run.scan()


def test_its_turn_comes_when_it_is_copied(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end to the start: nothing of it is left when it has been evaluated."""
    project.upload(2, 4)
    run = project.start()
    _scan_until_found(run, 4)
    _until(lambda: {state for state, _ in project.states().values()} == {"pinned"}, run)
    entry = run.take_next()
    assert entry is not None and entry.ref.iteration == 2
    assert entry.ref.path == f"memory:/{project.root}/checkpoint-2"
    assert sorted(path.name for path in entry.readable.path.iterdir()) == ["config.json", "model.safetensors"]
    plan = run.begin(entry).read_text()
    assert str(entry.readable.path) in plan
    run.finish(entry, "recorded")
    assert not entry.readable.path.exists()
    following = run.take_next()
    assert following is not None and following.ref.iteration == 4


def test_while_the_store_is_away_the_status_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.upload(2)
    run = project.start()
    _scan_until_found(run, 2)
    run.copies.drop(run.watcher.scan().complete[0])  # type: ignore[union-attr]
    objects, away = ObjectStore.objects, [True]

    def asked(self: ObjectStore, name: str = "") -> object:
        if away[0]:
            raise StorageError(f"{self.url}: the endpoint cannot be reached")
        return objects(self, name)

    monkeypatch.setattr(ObjectStore, "objects", asked)
    run._order_copies()
    _until(lambda: "not copied yet" in (project.states()[2][1] or ""), run)
    assert project.states()[2][0] == "found" and run.take_next() is None
    run.scan()
    assert "cannot be reached" in run.trouble
    assert project.states()[2][0] == "found"  # nothing is concluded from a listing that did not come
    away[0] = False
    _until(lambda: project.states()[2] == ("pinned", None), run)
    assert run.take_next() is not None


def test_one_that_is_uploaded_again_before_its_turn(project: Project) -> None:
    project.upload(2)
    run = project.start()
    _scan_until_found(run, 2)
    (first,) = run.entries.values()
    project.upload(2, weights=b"v")

    def is_seen() -> bool:
        run.scan()
        return any(entry.ref.fingerprint != first.ref.fingerprint for entry in run.entries.values())

    _until(is_seen, run)
    _until(lambda: project.states()[2] == ("pinned", None), run)
    entry = run.take_next()
    assert entry is not None and entry.ref.fingerprint != first.ref.fingerprint
    assert (entry.readable.path / "model.safetensors").read_bytes()[-1:] == b"v"
    assert not first.readable.path.exists()


def test_one_that_is_deleted_before_it_is_copied_is_missed_with_its_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.upload(2)
    run = project.start()
    monkeypatch.setattr("autoeval.copies.plan_copy", _deleting(project))
    _scan_until_found(run, 2)
    _until(lambda: project.states()[2][0] == "missed", run)
    assert "memory:/" in (project.states()[2][1] or "") and "deleted" in (project.states()[2][1] or "")
    assert run.take_next() is None and not run.anything_failed()


def _deleting(project: Project) -> Callable[..., object]:
    from autoeval.checkpoints import plan_copy

    def after_deletion(*arguments: object, **options: object) -> object:
        project.delete(2)
        return plan_copy(*arguments, **options)  # type: ignore[arg-type]

    return after_deletion


def test_a_whole_copy_outlives_the_daemon_and_the_objects(project: Project) -> None:
    project.upload(2, 4)
    run = project.start()
    _scan_until_found(run, 4)
    _until(lambda: {state for state, _ in project.states().values()} == {"pinned"}, run)
    run.close()
    project.delete(2)
    again = project.start()
    _scan_until_found(again, 4)
    entry = again.take_next()
    assert entry is not None and entry.ref.iteration == 2
    assert entry.readable.format == "huggingface" and (entry.readable.path / "config.json").exists()
    again.finish(entry, "recorded")
    assert len(list((project.file.parent / "out" / ".copies" / "m").iterdir())) == 2  # the other's copy, and its mark


def test_one_that_fits_nowhere_fails_with_its_figures(project: Project) -> None:
    project.file.write_text(project.file.read_text() + "  copies: {disk_gb: 1.0e-8}\n")
    project.upload(2)
    run = project.start()
    _scan_until_found(run, 2)
    _until(lambda: project.states()[2][0] == "failed", run)
    assert "copies.disk_gb" in (project.states()[2][1] or "") and run.anything_failed()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"storage_options: {{key: AKIA, secret: {SECRET_KEY}}}", "storage_options: key is a secret"),
        (f"storage_options: {{client_kwargs: {{aws_secret_access_key: {SECRET_KEY}}}}}", "access_key is a secret"),
        ("storage_options: [1]", "storage_options: Input should be a valid dictionary"),
        (
            f"megatron: {{checkpoint_path: 's3://me:{SECRET_KEY}@b/x'}}",
            "checkpoint_path: the URL has credentials in it",
        ),
        ("megatron: {checkpoint_path: 's3://'}", "checkpoint_path: the URL names no bucket"),
        ("megatron: {tokenizer_path: 's3://b/../c'}", "tokenizer_path: the URL has '..' in it"),
        ("copies: {most: 0}", "copies.most"),
    ],
)
def test_what_is_refused_in_the_configuration(line: str, said: str, project: Project) -> None:
    project.file.write_text(project.file.read_text() + f"  {line}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(project.file)
    assert said in str(raised.value) and f"{project.file}:9: auto_eval." in str(raised.value)
    assert SECRET_KEY not in str(raised.value)
