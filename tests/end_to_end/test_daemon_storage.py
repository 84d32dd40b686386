"""The daemon as a user runs it, on checkpoints that lie in a bucket (moto's S3 in a process of its own, the real s3fs)."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import MEGATRON_CONFIG
from tests.end_to_end.daemon_world import CONFIG, logged, run, scores, started, states
from tests.storage.conftest import Bucket, bucket, server, signed_in  # noqa: F401  # fixtures
from tests.storage.gate import Gate
from tests.storage.stores import ACCESS_KEY, SECRET_KEY, upload_directory
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


def _in_bucket(text: str, where: Bucket, settings: str) -> str:
    """The configuration, with what it has in directories in the bucket."""
    changed = text.replace("checkpoint_path: checkpoints", f"checkpoint_path: {where.url('run/checkpoints')}{settings}")
    changed = changed.replace("tokenizer_path: tokenizer", f"tokenizer_path: {where.url('tokenizer')}")
    assert changed != text
    return changed.replace("mode: offline", "mode: disabled")


def _scores_from_a_directory(project: Path, config: str, checkpoints: dict[str, Path], elsewhere: Path) -> object:
    shutil.copytree(project, elsewhere, ignore=shutil.ignore_patterns("out"))
    for name, source in checkpoints.items():
        shutil.copytree(source, elsewhere / "checkpoints" / name)
    (elsewhere / "evaluator.yaml").write_text(config.replace("mode: offline", "mode: disabled"))
    ended = run(elsewhere, "--once")
    assert ended.returncode == 0, ended.stderr
    return scores(elsewhere)


def _assert_no_credentials_in(*directories: Path) -> None:
    for path in (path for directory in directories for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert SECRET_KEY.encode() not in content and ACCESS_KEY.encode() not in content, path


def test_a_checkpoint_that_is_uploaded_while_it_watches_is_evaluated(
    models: Path,
    project: Path,
    bucket: Bucket,  # noqa: F811
) -> None:
    (project / "evaluator.yaml").write_text(_in_bucket(CONFIG, bucket, ", settle_seconds: {upload: 0.5}"))
    with started(project, "--check-interval", "0.01", "--end-iteration", "100", "--debug", fresh=True) as daemon:
        wait_for(lambda: logged(project, "watching s3://"), 300)
        upload_directory(bucket.client, bucket.name, "run/checkpoints/checkpoint-100", models / "checkpoint-100")
        _, errors = daemon.communicate(timeout=300)
    assert daemon.returncode == 0, errors
    assert states(project) == {100: "recorded"}
    assert not list((project / "out" / ".copies" / "tiny-gpt2").iterdir())  # copied, evaluated, and let go
    assert SECRET_KEY not in errors and ACCESS_KEY not in errors  # at --debug, too
    _assert_no_credentials_in(project)


@pytest.fixture
def gate(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:  # noqa: F811
    """Between the daemon and the store."""
    made = Gate(bucket.server.port)
    made.open()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.endpoint)
    yield made
    made.shut()


def test_an_endpoint_that_goes_away_and_a_daemon_that_is_killed_while_it_copies(
    megatron_saves: Path,
    megatron_project: Path,
    bucket: Bucket,  # noqa: F811
    gate: Gate,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Megatron checkpoint and its tokenizer. What was whole when the daemon was killed is not fetched again."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AUTOEVAL_CACHE", str(cache))
    project, source = megatron_project, megatron_saves / "torch_dist" / "iter_0000100"
    text = _in_bucket(MEGATRON_CONFIG, bucket, "") + "  copies: {parallel: 1}\n"
    (project / "evaluator.yaml").write_text(text)
    upload_directory(bucket.client, bucket.name, "tokenizer", project / "tokenizer")
    upload_directory(bucket.client, bucket.name, "run/checkpoints/iter_0000100", source)
    bucket.put("run/checkpoints/latest_checkpointed_iteration.txt", b"100")
    gate.shut()
    with started(project, "--check-interval", "0.01") as daemon:
        wait_for(lambda: logged(project, "the endpoint cannot be reached"), 300)
        status = run(project, "--status")
        assert status.returncode == 0 and "the endpoint cannot be reached" in " ".join(status.stdout.split())
        gate.open(shut_at=b".distcp HTTP", times=2)
        wait_for(gate.is_shut.is_set, 300)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    (copy,) = (path for path in (project / "out" / ".copies" / "tiny-gpt2").iterdir() if path.is_dir())
    whole = [path.name for path in copy.iterdir() if path.name[0] != "." and path.suffix == ".distcp"]
    assert len(whole) == 1
    gate.open()
    asked = len(bucket.server.requests())
    ended = run(project, "--once")
    assert ended.returncode == 0, ended.stderr
    assert states(project) == {100: "recorded"}
    assert not [line for line in bucket.server.requests()[asked:] if whole[0] in line]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "project"
    local = _scores_from_a_directory(project, MEGATRON_CONFIG, {"iter_0000100": source}, elsewhere)
    assert scores(project) == local and local
    _assert_no_credentials_in(project, cache)
