"""A store for tests: moto's S3 in a process of its own on 127.0.0.1, asked by the real s3fs, filled by the real boto3."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]
ACCESS_KEY, SECRET_KEY = "AKIAEXAMPLEOFATEST77", "a-secret-that-must-not-be-written-anywhere"


class Ended(Exception):
    """By itself, with what it has said."""


@dataclass
class Server:
    """``pause`` and ``go_on`` stop the process and let it run: an endpoint that is down, or hangs."""

    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    paused: bool = field(default=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None:
                raise Ended(self.log.read_text())
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def client(self) -> Any:
        """boto3's, by another door than the one that is tested."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def requests(self) -> list[str]:
        """What was asked so far, ``GET /bucket?...``."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line.split('"')[1] for line in lines if '"' in line and "HTTP/1" in line]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def running(log: Path) -> Iterator[Server]:
    for _ in range(5):  # somebody else may have got the port in between
        server = Server(free_port(), log)
        with contextlib.suppress(Ended):
            server.start()
            break
    else:
        raise AssertionError(log.read_text())
    try:
        yield server
    finally:
        server.stop()


def upload(client: Any, bucket: str, prefix: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def upload_directory(client: Any, bucket: str, prefix: str, directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            client.put_object(
                Bucket=bucket, Key=f"{prefix}/{path.relative_to(directory).as_posix()}", Body=path.read_bytes()
            )
