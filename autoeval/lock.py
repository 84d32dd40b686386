"""One daemon per work directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from autoeval.yaml_file import ConfigError


class WorkDirectoryLock:
    """Held for the life of the process; the operating system releases it however the process ends."""

    def __init__(self, work_dir: Path):
        """Raises ``ConfigError`` naming the holder's pid and host when another daemon holds the directory."""
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            self._file = (work_dir / "daemon.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{work_dir}: the work directory cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise ConfigError(f"{work_dir}: another daemon is at work here: {holder}") from None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        self._file.close()
