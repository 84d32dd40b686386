"""The daemon as a user runs it, on checkpoints that lie in a bucket."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import daemon_world
from tests.end_to_end.daemon_world import (
    CONFIG,
    DATASET,
    command,
    logged,
    run,
    scores,
    states,
    wait_for,
)
from tests.storage.conftest import Bucket
from tests.storage.stores import ACCESS_KEY, SECRET_KEY, upload_directory
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.slow

HERE = "huggingface: {checkpoint_path: checkpoints, token_per_iteration: 0.001}"
IN_BUCKET = "huggingface: {checkpoint_path: %s, token_per_iteration: 0.001, settle_seconds: {upload: 0.5}}"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for iteration in (100, 200, 300):
        save_tiny_model(directory / f"checkpoint-{iteration}", seed=iteration)
    return directory


@pytest.fixture
def project(tmp_path: Path, bucket: Bucket) -> Path:
    items = [
        {"question": f"{a} + {b} =", "A": str(a + b), "B": str(a - b), "answer": "A"}
        for a in range(10, 16)
        for b in range(1, 6)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "two.py").write_text(DATASET.format(directory=tmp_path))
    text = CONFIG.replace(HERE, IN_BUCKET % bucket.url("run/checkpoints"))
    assert text != CONFIG
    (tmp_path / "evaluator.yaml").write_text(text)
    return tmp_path


@contextlib.contextmanager
def daemon(project: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (project / "stderr").open("ab") as errors,
        subprocess.Popen(command(project, *flags), cwd=daemon_world.HOME, stderr=errors) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def deliver(bucket: Bucket, models: Path, *iterations: int) -> None:
    for iteration in iterations:
        name = f"checkpoint-{iteration}"
        upload_directory(bucket.client, bucket.name, f"run/checkpoints/{name}", models / name)


def the_same_from_a_directory(project: Path, models: Path, elsewhere: Path) -> list[tuple[object, ...]]:
    """The scores of the same checkpoints in a directory here."""
    shutil.copytree(project, elsewhere, ignore=shutil.ignore_patterns("out"))
    shutil.copytree(models, elsewhere / "checkpoints")
    (elsewhere / "evaluator.yaml").write_text(CONFIG)
    assert run(elsewhere, "--once").returncode == 0
    return scores(elsewhere)


def test_checkpoints_that_are_uploaded_while_it_watches_have_the_scores_of_local_ones(
    models: Path, project: Path, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And the credentials are in no file of it."""
    with daemon(project, "--check-interval", "0.01") as process:
        wait_for(lambda: logged(project, "watching s3://"))
        deliver(bucket, models, 100, 200, 300)
        assert process.wait(timeout=240) == 0, (project / "stderr").read_text()
    assert states(project) == {100: "recorded", 200: "recorded", 300: "recorded"}
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "project"
    assert scores(project) == the_same_from_a_directory(project, models, elsewhere)
    assert not list((project / "out" / ".copies" / "tiny-gpt2").iterdir())  # they were copied, and are no more
    for path in project.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET_KEY.encode() not in content and ACCESS_KEY.encode() not in content, path
