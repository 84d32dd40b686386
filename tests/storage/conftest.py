from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.storage.stores import ACCESS_KEY, SECRET_KEY, Server, running

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of its own for a test."""

    server: Server
    name: str
    client: Any

    def url(self, path: str = "") -> str:
        return f"s3://{self.name}/{path}" if path else f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("moto") / "server.log") as one:
        yield one


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """The environment as AWS's own tools want it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.fixture
def bucket(server: Server, signed_in: None) -> Bucket:
    name = f"bucket-{next(_NUMBERS)}"
    client = server.client()
    client.create_bucket(Bucket=name)
    return Bucket(server, name, client)
