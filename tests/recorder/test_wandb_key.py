"""W&B's key is the publisher's alone: no task has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoeval.runners.worker_process import LocalWorker, worker_environment

SECRET = "s" * 40


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "LARK_SECRET", "SLACK_WEBHOOK", "OUR_WEBHOOK_URL"):
        monkeypatch.setenv(name, SECRET)


def test_what_every_runner_hands_on_has_no_secret(secrets: None):
    handed_on = worker_environment()
    assert SECRET not in handed_on.values()
    assert handed_on["PATH"] == os.environ["PATH"] and handed_on["WANDB_MODE"] == "disabled"


def test_a_worker_has_no_secret_in_its_environment(secrets: None, tmp_path: Path):
    worker = LocalWorker(lambda *_: None, tmp_path / "worker.log")
    try:
        environment = b""
        while b"PATH=" not in environment:  # for a moment of its start it is empty
            environment = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert SECRET.encode() not in environment
    finally:
        worker.close()
