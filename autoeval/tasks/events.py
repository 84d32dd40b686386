"""What a process that computes tells about its work: one JSON object a line, on a stream or in a file that others read."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

HEARTBEAT_SECONDS = 2.0


class Events:
    """Writes events to a stream that nothing else in this process can reach. For any thread."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, **details: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"event": event, **details}) + "\n")
            self._stream.flush()


class EventFile:
    """Appends events to a file, each with one write and on the disk when it returns: another machine may read them.

    A line that an earlier process was killed in is ended first: a requeued job has the file of its first start.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")

    def __call__(self, event: str, **details: Any) -> None:
        line = json.dumps({"event": event, **details}) + "\n"
        with self._lock:
            os.write(self._descriptor, line.encode())
            os.fsync(self._descriptor)


class Tail:
    """Reads what is appended to an ``EventFile``, from the beginning on. A file that is not there yet has no events."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call; a line that is not whole yet is left for the next."""
        try:
            with self._path.open("rb") as stream:  # opened anew: that is when a network file system looks again
                stream.seek(self._offset)
                content = stream.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # cut short when its writer was killed
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    events.append(event)
        return events


@contextlib.contextmanager
def beating(emit: Callable[..., None], seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Say every ``seconds`` that this process is alive, while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            emit("alive")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
