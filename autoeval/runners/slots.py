"""GPUs, CPUs and memory of this machine, dealt out among processes that know nothing of each other.

Who holds what stands in a file for each holder, with the processes that it is held for; when they have all ended, whatever
ended them, it is held no more. Nothing has to be given back, so nothing can be forgotten. One at a time looks and takes:
in order of asking, so that one who wants much is not overtaken for ever by those who want little.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.runners.processes import Identity, from_json, identify, wait_for_end
from recorder.files import write_json

LOOK_AGAIN_SECONDS = 60.0  # should an end go unnoticed


@dataclass(frozen=True)
class Wanted:
    gpus: int = 0
    cpus: int = 0
    memory_gb: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"] * bool(self.gpus)
        parts += [f"{self.cpus} CPU slot{'' if self.cpus == 1 else 's'}"] * bool(self.cpus)
        parts += [f"{self.memory_gb:g} GB"] * bool(self.memory_gb)
        return ", ".join(parts)


@dataclass(frozen=True)
class Capacity:
    """``gpus``: ids as in CUDA_VISIBLE_DEVICES; where there are none, nothing asks for any."""

    gpus: tuple[str, ...]
    per_gpu: int
    cpus: int
    memory_gb: float

    def lacks(self, wanted: Wanted) -> str | None:
        """Why ``wanted`` could never be had here."""
        if self.gpus and wanted.gpus > len(self.gpus):
            return f"{wanted.gpus} GPUs; there are {len(self.gpus)} (CUDA_VISIBLE_DEVICES)"
        if wanted.cpus > self.cpus:
            return f"{wanted.cpus} CPU slots; there are {self.cpus}"
        if wanted.memory_gb > self.memory_gb:
            return f"{wanted.memory_gb:g} GB of memory; there are {self.memory_gb:.1f}"
        return None


@dataclass(frozen=True)
class Holder:
    file: Path
    processes: tuple[Identity, ...]
    gpus: tuple[str, ...]
    cpus: int
    memory_gb: float


class Reservation:
    """What one holder has; ``gpus`` are the ids."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self._file, self._content = file, dict(content)
        self.gpus: tuple[str, ...] = tuple(content["gpus"])

    def held_for(self, process: Identity) -> None:
        """It is held as long as this process lives too."""
        self._content["processes"] = [*self._content["processes"], process.as_json()]
        write_json(self._file, self._content)


class Slots:
    """Those of this machine that are shared by all who name the same ``directory``, from whatever machine it is seen."""

    def __init__(self, directory: Path, capacity: Capacity) -> None:
        self.capacity = capacity
        self._directory = directory / socket.gethostname()

    @contextlib.contextmanager
    def taken(self, wanted: Wanted, waits: Callable[[str], None]) -> Iterator[Reservation]:
        """``wanted``, held for this process until the block ends. Waits for it, after having told ``waits`` for what.

        Raises ``OSError`` where the file system has no locks.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        me = identify(os.getpid())
        assert me is not None
        file = self._directory / f"{uuid.uuid4().hex}.json"
        content = {"processes": [me.as_json()], "gpus": [], "cpus": wanted.cpus, "memory_gb": wanted.memory_gb}
        if wanted != Wanted():
            with self._turn(waits, wanted):
                content["gpus"] = self._found(wanted, waits)
                write_json(file, content)
        try:
            yield Reservation(file, content)
        finally:
            file.unlink(missing_ok=True)

    def _found(self, wanted: Wanted, waits: Callable[[str], None]) -> list[str]:
        told = ""
        while (gpus := self._fit(wanted, holders := self.holders())) is None:
            if told != (reason := f"waits for {wanted}: {len(holders)} have all that is left"):
                waits(told := reason)
            wait_for_end([one for holder in holders for one in holder.processes if one.alive], LOOK_AGAIN_SECONDS)
        return gpus

    @contextlib.contextmanager
    def _turn(self, waits: Callable[[str], None], wanted: Wanted) -> Iterator[None]:
        with (self._directory / "turn.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits(f"waits for {wanted}: others asked before")
                fcntl.flock(lock, fcntl.LOCK_EX)  # a signal's handler that raises ends it
            yield

    def holders(self) -> list[Holder]:
        """Those whose processes live; what the others left is removed."""
        found = []
        for file in sorted(self._directory.glob("*.json")):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            processes = tuple(map(from_json, content["processes"]))
            if any(one.alive for one in processes):
                found.append(
                    Holder(file, processes, tuple(content["gpus"]), int(content["cpus"]), float(content["memory_gb"]))
                )
            else:
                file.unlink(missing_ok=True)
        return found

    def _fit(self, wanted: Wanted, holders: list[Holder]) -> list[str] | None:
        """The ids of the GPUs, those with the least on them; ``None`` when there is no room."""
        if sum(one.cpus for one in holders) + wanted.cpus > self.capacity.cpus:
            return None
        if sum(one.memory_gb for one in holders) + wanted.memory_gb > self.capacity.memory_gb:
            return None
        if not self.capacity.gpus:
            return []
        used = {gpu: sum(one.gpus.count(gpu) for one in holders) for gpu in self.capacity.gpus}
        free = sorted((gpu for gpu in used if used[gpu] < self.capacity.per_gpu), key=lambda gpu: used[gpu])
        return free[: wanted.gpus] if len(free) >= wanted.gpus else None
