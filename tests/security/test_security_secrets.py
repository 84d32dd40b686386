"""Keys, passwords and webhooks: not in files, logs, process arguments, or the environment of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoeval.model_eval.given_model import _served_name
from autoeval.models.requests import GenerationRequest
from autoeval.models.server import ChatServer, CompletionsServer, ServerError, ServerRefusal
from autoeval.run.secrets import without_secrets
from autoeval.runners.dlc import DlcCommand, DlcJob, DlcOptions
from autoeval.runners.jobs import QueueRefused, passed_on
from autoeval.runners.worker_process import worker_environment
from recorder.masking import masked
from recorder.messages.channel import Channel
from recorder.messages.delivery import Pace, deliver
from recorder.messages.message import Message

SECRET = "hunter2-hunter2"
NOWHERE = "127.0.0.1:9"  # the discard port: refused at once


@pytest.mark.parametrize("name", ["AUTOEVAL_SERVE_TOKEN", "AUTOEVAL_MESSAGES", "WANDB_API_KEY", "OUR_WEBHOOK_URL"])
def test_no_task_has_what_is_for_publishing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert SECRET not in worker_environment().values()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HF_TOKEN_PATH", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "https_proxy"]
)
def test_another_machine_gets_what_it_needs_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    assert SECRET not in passed_on().values() and passed_on()["HF_HOME"] == "/shared/hf"


def dlc_job(**environment: str) -> DlcJob:
    return DlcJob("key", "name", "true", 0, 1, 1, None, environment)


def test_the_dlc_command_is_given_no_key(tmp_path: Path) -> None:
    """Its arguments are for every user of the machine to read."""
    program = tmp_path / "dlc"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\necho dlc1234567\n')
    program.chmod(0o755)
    command, options = DlcCommand(None, str(program)), DlcOptions("1", "image")
    with pytest.raises(QueueRefused, match="a model's key cannot go that way") as caught:
        command.create(options, dlc_job(AUTOEVAL_SECRET_0=SECRET))
    assert SECRET not in str(caught.value) and not (tmp_path / "arguments").exists()
    with pytest.raises(QueueRefused, match="PYTHONPATH, which has a comma"):
        command.create(options, dlc_job(PYTHONPATH="/a,LD_PRELOAD=/b"))
    assert command.create(options, dlc_job(PYTHONPATH="/a")) == "dlc1234567"


SECRET_ADDRESSES = [
    f"https://user:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"https://host/v1?api_key={SECRET}",
    f"https://host/v1?x=1&X-Amz-Signature={SECRET}",
    f"https://host/v1?sig={SECRET}",
]


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_an_address_with_a_secret_in_it_is_one(address: str) -> None:
    clean, found = without_secrets([{"type": "OpenAI", "base_url": address}])
    assert SECRET not in repr(clean) and list(found.values()) == [address]


def test_other_addresses_are_none() -> None:
    models = [{"base_url": "http://h:8000/v1", "path": "s3://bucket/a?b", "other": "hdfs://user@host/x?n=1"}]
    assert without_secrets(models) == (models, {})


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_it_is_masked_where_it_is_shown(address: str) -> None:
    shown = masked(f"{address}/completions: nothing there", address)
    assert SECRET not in shown and "host/v1" in shown and shown.endswith(": nothing there")


@pytest.mark.parametrize("kind", [CompletionsServer, ChatServer])
@pytest.mark.parametrize("address", [f"http://u:{SECRET}@{NOWHERE}/v1", f"http://{NOWHERE}/v1?key={SECRET}"])
def test_no_message_of_a_served_model_has_its_address_whole(
    kind: Any, address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server = kind("m", base_url=address, key="sk-" + SECRET, retry=1)
    with pytest.raises((ServerError, ServerRefusal)) as caught:
        server.generate([GenerationRequest((104, 105), 4)])
    with pytest.raises(ValueError, match="served_name") as named:
        _served_name(address)
    assert SECRET not in f"{caught.value}{named.value}{caplog.text}" and NOWHERE.split(":")[0] in str(caught.value)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy"])
def test_a_proxys_password_is_in_no_message(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://user:{SECRET}@{NOWHERE}")
    address = f"{variable.partition('_')[0]}://somewhere.invalid/v1"
    with pytest.raises(ServerError) as caught:
        CompletionsServer("m", base_url=address, retry=0).generate([GenerationRequest((1,), 1)])
    assert "ProxyError" in str(caught.value) and SECRET not in str(caught.value)
    channel = Channel("webhook", "https://somewhere.invalid/hook")
    answer = deliver(channel, Message("verdict", "p", "m", "title"), Pace(9, 9), tries=1)
    assert SECRET not in f"{answer}{channel}{caplog.text}"
