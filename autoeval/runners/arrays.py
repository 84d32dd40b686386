"""Commands as job arrays of a ``Queue``: written down, submitted, looked at, and how each has ended. Nothing waits here.

An array is written down with a key that the queue keeps too, before it is submitted: a process that was killed at any
moment leaves nothing behind that the next one does not find.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoeval.runners.jobs import JobArray, JobState, Queue, Resources, task_log
from autoeval.tasks import BAD_INPUT
from recorder.files import write_json

logger = logging.getLogger(__name__)

HELD_SECONDS = 60.0  # a held job is given so long to be released
RECORD_SECONDS = 20.0  # for a record to appear on a slow network file system, after the queue has said that it ended


@dataclass(eq=False)
class Member:
    """One command on its way: which array has it, as which number. ``whole`` says whether its outputs are there."""

    name: str
    command: Sequence[str]
    log: Path
    record: Path
    whole: Callable[[], bool]
    array: Array | None = field(default=None, repr=False)
    number: int = 0
    held_since: float | None = None
    ended_since: float | None = None

    @property
    def element(self) -> str:
        """What the queue calls it."""
        return "" if self.array is None else f"{self.array.job}_{self.number}"


@dataclass(eq=False)
class Array:
    """``job`` is the queue's id, known once it was submitted; ``asked``: it may have been, and is looked for first."""

    key: str
    manifest: Path
    members: Sequence[Member]
    resources: Resources
    job: str | None = None
    asked: bool = False


@dataclass(frozen=True)
class End:
    """How a command has ended. ``code`` 0 is a good end, whatever the queue says; ``why`` is empty when the code says
    all; ``again``: if it failed, another try may help."""

    code: int
    why: str
    again: bool


class Arrays:
    """Those of one queue. ``at_once`` limits how many of an array run at a time; ``environment`` is set for each."""

    def __init__(
        self,
        queue: Queue,
        *,
        at_once: int = 1,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self._at_once = at_once
        self._environment = dict(environment or {})
        self._clock = clock
        self._silent = False  # the queue did not answer the last time

    def write_down(self, members: Sequence[Member], folder: Path, resources: Resources) -> Array:
        """A new array of ``members``, in ``folder``; it is not submitted yet."""
        key = f"autoeval-{uuid.uuid4().hex}"
        array = Array(key, folder / f"{key}.array.json", members, resources)
        for number, one in enumerate(members):
            one.record.unlink(missing_ok=True)
            one.array, one.number, one.held_since, one.ended_since = array, number, None, None
        _write(array)
        return array

    def submit(self, array: Array) -> str:
        """Its job's id. One that may have been submitted before (its answer was lost) is found again by its key.

        Raises ``QueueError`` and ``QueueRefused`` as the queue does.
        """
        if array.asked:
            array.job = self.queue.find(array.key)
        if array.job is None:
            array.asked = True
            array.job = self.queue.submit(self._wanted(array))
        _write(array)
        return array.job

    def _wanted(self, array: Array) -> JobArray:
        return JobArray(
            key=array.key,
            name=array.members[0].name,
            command=[sys.executable, "-m", "autoeval.runners.array_task", str(array.manifest.absolute())],
            size=len(array.members),
            resources=array.resources,
            log=array.manifest.with_suffix(".log").absolute(),
            at_once=min(self._at_once, len(array.members)),
            environment=self._environment,
        )

    def look(self, members: Sequence[Member]) -> list[tuple[Member, JobState]]:
        """The state of each, all of which were submitted. A queue that does not answer is told of once."""
        jobs = {one.array.job: len(one.array.members) for one in members if one.array is not None and one.array.job}
        states = self.queue.poll(jobs)
        unknown = [state for found in states.values() for state in found if state.kind == "unknown"]
        if unknown and not self._silent:
            logger.warning("%s; waiting until it does, what runs goes on", unknown[0].reason)
        elif self._silent and not unknown:
            logger.info("the queue answers again")
        self._silent = bool(unknown)
        return [(one, states[one.array.job][one.number]) for one in members if one.array and one.array.job]

    def end_of(self, one: Member, state: JobState) -> End | None:
        """How ``one`` ended; ``None`` while it has not, or while that cannot be known."""
        now = self._clock()
        if state.kind in ("held", "waiting") and read_record(one.record) is not None and one.whole():
            # A controller that was killed forgets a start, and may start it again or hold it for ever.
            self.queue.cancel([one.element])
            return End(0, "", state.again)
        if state.kind == "held":
            one.held_since = one.held_since or now
            if now - one.held_since < HELD_SECONDS:
                return None
            self.queue.cancel([one.element])
            return _end(one, 1, f"held by the queue: {state.reason or state.name}; cancelled", state)
        one.held_since = None
        if not state.over:
            one.ended_since = None
            return None
        record = read_record(one.record)
        if record is None:
            return self._without_record(one, state)
        code = int(record["code"])
        odd = state.kind == "ended" and state.name not in ("COMPLETED", "FAILED")
        return _end(one, code or (1 if odd else 0), _told(state) if odd else "", state)

    def _without_record(self, one: Member, state: JobState) -> End | None:
        if (word := self.queue.told(self._log(one))) is not None:
            return _end(one, 1, word, state)
        if state.name not in ("", "COMPLETED", "FAILED"):
            return _end(one, 1, _told(state), state)
        # The file may be on its way. Outputs that are all there need no witness.
        now = self._clock()
        one.ended_since = one.ended_since or now
        whole = one.whole()
        if not whole and now - one.ended_since < RECORD_SECONDS:
            return None
        return _end(one, 0 if whole else 1, "" if whole else f"{state.name or 'lost'}: it left no record", state)

    def _log(self, one: Member) -> str:
        """What the queue itself wrote about it."""
        assert one.array is not None
        with contextlib.suppress(OSError):
            return task_log(one.array.manifest.with_suffix(".log"), one.number).read_text(errors="replace")
        return ""

    def over(self, arrays: Iterable[Array]) -> list[Array]:
        """Those of ``arrays``, all of which were submitted, that the queue says have ended."""
        jobs = {array.job: array for array in arrays if array.job is not None}
        states = self.queue.poll({job: len(array.members) for job, array in jobs.items()})
        return [jobs[job] for job, found in states.items() if all(state.over for state in found)]


def _end(one: Member, code: int, why: str, state: JobState) -> End:
    # The outputs are the truth; only who is told that the input is wrong has no use for them.
    return End(0, "", state.again) if code != BAD_INPUT and one.whole() else End(code, why, state.again)


def _told(state: JobState) -> str:
    return f"{state.name} ({state.reason})" if state.reason and state.reason != state.name else state.name


def read_record(path: Path) -> dict[str, Any] | None:
    """What ``array_task`` left of a command that ended."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(array: Array) -> None:
    tasks = [
        {
            "name": one.name,
            "command": list(one.command),
            "log": str(one.log.absolute()),
            "record": str(one.record.absolute()),
        }
        for one in array.members
    ]
    write_json(array.manifest, {"key": array.key, "job": array.job, "python": sys.executable, "tasks": tasks})


def close(array: Array) -> None:
    """Note in the array's file that nobody need look for it any more."""
    write_json(array.manifest, {**json.loads(array.manifest.read_text(encoding="utf-8")), "closed": True})


def read_arrays(folder: Path) -> list[Array]:
    """Those that a former process wrote down in ``folder`` and did not close. Their members have no outputs to tell of."""
    found = []
    for manifest in sorted(folder.glob("*.array.json")):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if not content.get("closed"):
            found.append(array_of(manifest, content))
    return found


def array_of(manifest: Path, content: Mapping[str, Any], resources: Resources | None = None) -> Array:
    """From a file that ``write_down`` wrote. It may have been submitted without the file saying so."""
    members = [
        Member(one["name"], one["command"], Path(one["log"]), Path(one["record"]), lambda: False)
        for one in content["tasks"]
    ]
    array = Array(content["key"], manifest, members, resources or Resources(), content["job"], asked=True)
    for number, one in enumerate(members):
        one.array, one.number = array, number
    return array
