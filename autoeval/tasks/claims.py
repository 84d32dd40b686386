"""Who evaluates which task, when several processes on several machines share a checkpoint's tasks.

A claim is a file with its owner's name, made whole and only if there is none: ``link`` fails when the name exists, on
network file systems too. So a process that has done its own share goes on with what the others have not begun, and no
task waits for a job that is still in the queue.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autoeval.tasks.plan import file_name


class Claims:
    """The claims in ``directory``, seen by ``owner``."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._directory, self.owner = directory, owner

    def take(self, task: str) -> bool:
        """Whether ``task`` is this owner's from now on; also when it was before, and the process was started again."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self._directory, prefix=".claim-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(self.owner)
            os.link(temporary, self._path(task))
        except FileExistsError:
            return self.holder(task) == self.owner
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True

    def holder(self, task: str) -> str | None:
        """Who has ``task``, or ``None``."""
        try:
            return self._path(task).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def may_be_taken(self, task: str) -> bool:
        return self.holder(task) in (None, self.owner)

    def release(self, tasks: Sequence[str]) -> None:
        """Give back those of ``tasks`` that are this owner's. Only for an owner that is known to have ended."""
        for task in tasks:
            if self.holder(task) == self.owner:
                with contextlib.suppress(FileNotFoundError):
                    self._path(task).unlink()

    def release_of_all(self, tasks: Sequence[str]) -> None:
        """Give back ``tasks``, whoever has them. Only when all who claim here are known to have ended."""
        for task in tasks:
            self._path(task).unlink(missing_ok=True)

    def _path(self, task: str) -> Path:
        return self._directory / file_name(task)
