"""Where a conversion is made before it has its name: a hidden directory beside the output, held by one process.

``.<output>.partial-<pid>`` is filled and renamed; ``.<output>.lock`` keeps a second conversion to the same output away (the
operating system lets it go however the process ends); whatever a killed conversion left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO, Any

from autoeval.convert.errors import OutputError, Quarantined
from recorder.files import sync_directory, write_json

REASON = "quarantined.json"


def quarantine(directory: Path, output: Path, reason: str, **details: Any) -> Quarantined:
    """Move ``directory`` to ``<output>.quarantined`` with the reason in a file; returns the error to raise."""
    place = output.with_name(f"{output.name}.quarantined")
    shutil.rmtree(place, ignore_errors=True)
    write_json(directory / REASON, {"reason": reason, **details})
    directory.replace(place)
    sync_directory(place.parent)
    return Quarantined(f"{reason}; what was made of it stands at {place}", place)


class Workplace:
    """``with Workplace(output) as place``: ``place.directory`` is empty and this process's own until the end.

    Raises ``OutputError`` where nothing can be written or another conversion to ``output`` is at work.
    """

    def __init__(self, output: Path):
        self.output = output
        self.directory = output.with_name(f".{output.name}.partial-{os.getpid()}")
        self._old = output.with_name(f".{output.name}.old-{os.getpid()}")
        self._lock_path = output.with_name(f".{output.name}.lock")

    def __enter__(self) -> Workplace:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.output}: cannot be written: {error.strerror}: {error.filename}") from error
        try:
            self._sweep()
            self.directory.mkdir()
        except OSError as error:
            self._release()
            raise OutputError(f"{self.directory}: cannot be made: {error.strerror}") from error
        return self

    def __exit__(self, *_details: object) -> None:
        try:
            self._sweep()
        finally:
            self._release()

    def publish(self) -> None:
        """Give the finished directory its name; an older conversion there is put aside first, then removed."""
        sync_directory(self.directory)
        if self.output.exists():
            self.output.replace(self._old)
        self.directory.replace(self.output)
        sync_directory(self.output.parent)

    def _sweep(self) -> None:
        for old in self._beside("old"):
            if not self.output.exists():
                old.replace(self.output)  # killed between the two renames: the old one was good
        for left in (*self._beside("partial"), *self._beside("old")):
            shutil.rmtree(left)

    def _beside(self, kind: str) -> list[Path]:
        start = f".{self.output.name}.{kind}-"
        return [path for path in self.output.parent.iterdir() if path.name.startswith(start)]

    def _take_lock(self) -> IO[str]:
        while True:
            stream = self._lock_path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "unknown"
                stream.close()
                raise OutputError(f"{self.output}: another conversion is writing here (process {holder})") from None
            if self._still_there(stream):
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
                return stream
            stream.close()  # its holder removed it in between: that file locks nothing any more

    def _still_there(self, stream: IO[str]) -> bool:
        try:
            return self._lock_path.stat().st_ino == os.fstat(stream.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _release(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()
