"""A training run that writes checkpoints and does with them what training runs do: saves that never end, that end late,
that are deleted soon or saved again under the same iteration, a tracker that is torn or says something else for a while."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from autoeval.checkpoints import fingerprint

TRACKER = "latest_checkpointed_iteration.txt"
MARKS = (".metadata", "metadata.json", "model.safetensors")  # written last, in this order


@dataclass
class Save:
    """One whole save: ``variant`` says which weights it has."""

    iteration: int
    variant: str
    on_disk: bool = True


@dataclass
class Story:
    """What was done. ``saves`` by fingerprint; ``unfinished``: iterations of which no save ever was whole."""

    saves: dict[str, Save] = field(default_factory=dict)
    unfinished: set[int] = field(default_factory=set)
    kinds: list[str] = field(default_factory=list)

    def final(self) -> dict[int, str]:
        """Variant of each iteration that is whole on the disk in the end."""
        return {save.iteration: save.variant for save in self.saves.values() if save.on_disk}

    def resaved(self) -> set[int]:
        iterations = [save.iteration for save in self.saves.values()]
        return {iteration for iteration in iterations if iterations.count(iteration) > 1}


class Training(threading.Thread):
    """Writes to ``root`` saves with the weights of ``variants`` (name -> directory of a whole save), ``count`` of them.

    The last one is always whole and stays.
    """

    def __init__(self, root: Path, variants: dict[str, Path], count: int, seed: int, *, megatron: bool, age: float):
        super().__init__(daemon=True)
        self.story = Story()
        self.error: BaseException | None = None
        self._root, self._variants, self._megatron, self._age = root, variants, megatron, age
        self._count = count
        self._random = random.Random(seed)
        self._latest = 0
        root.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        try:
            self._train()
        except BaseException as error:
            self.error = error

    def _train(self) -> None:
        later: list[tuple[int, str]] = []
        for number in range(1, self._count):
            iteration = 100 * number
            variant = self._random.choice(sorted(self._variants))
            kind = self._random.choices(
                ("whole", "partial", "late", "deleted", "resaved", "tracker"), (6, 2, 2, 3, 3, 2)
            )[0]
            self.story.kinds.append(kind)
            getattr(self, f"_{kind}")(iteration, variant, later)
            self._pause(0.3)
            while later and self._random.random() < 0.5:
                self._finish(*later.pop())
        for one in later:
            self._finish(*one)
        self._write(100 * self._count, self._random.choice(sorted(self._variants)))

    # Kinds

    def _whole(self, iteration: int, variant: str, _: list[tuple[int, str]]) -> None:
        self._write(iteration, variant)

    def _partial(self, iteration: int, variant: str, _: list[tuple[int, str]]) -> None:
        self._write_torn(iteration, variant)
        self.story.unfinished.add(iteration)

    def _late(self, iteration: int, variant: str, later: list[tuple[int, str]]) -> None:
        self._write_torn(iteration, variant)
        later.append((iteration, variant))

    def _deleted(self, iteration: int, variant: str, _: list[tuple[int, str]]) -> None:
        self._write(iteration, variant)
        self._pause(0.8)
        self._forget(iteration)
        shutil.rmtree(self._directory(iteration))

    def _resaved(self, iteration: int, variant: str, _: list[tuple[int, str]]) -> None:
        self._write(iteration, variant)
        self._pause(0.8)
        self._forget(iteration)
        if not self._megatron or self._random.random() < 0.3:
            shutil.rmtree(self._directory(iteration))
        self._write(iteration, self._random.choice([name for name in sorted(self._variants) if name != variant]))

    def _tracker(self, iteration: int, variant: str, _: list[tuple[int, str]]) -> None:
        self._write(iteration, variant)
        if self._megatron:
            path = self._root / TRACKER
            path.write_text(self._random.choice(("", "1", "release", "0", "-7\n", "99999999999999999999", "\x00\x00")))
            self._pause(0.3)
            self._stamp(path, self._note_latest)

    # Files

    def _directory(self, iteration: int) -> Path:
        return self._root / (f"iter_{iteration:07d}" if self._megatron else f"checkpoint-{iteration}")

    def _files(self, variant: str) -> tuple[list[Path], list[Path]]:
        source = self._variants[variant]
        files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        marks = [path for mark in MARKS for path in files if path.name == mark] or files[-1:]
        return [path for path in files if path not in marks], marks

    def _write(self, iteration: int, variant: str) -> None:
        self._write_first(iteration, variant)
        self._finish(iteration, variant)

    def _write_first(self, iteration: int, variant: str) -> None:
        for name in self._files(variant)[0]:
            self._copy(iteration, variant, name)

    def _write_torn(self, iteration: int, variant: str) -> None:
        """All but the end: half of the file that is due next."""
        self._write_first(iteration, variant)
        name = self._files(variant)[1][0]
        content = (self._variants[variant] / name).read_bytes()
        target = self._directory(iteration) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._stamp(target, lambda path: path.write_bytes(content[: len(content) // 2]))

    def _finish(self, iteration: int, variant: str) -> None:
        for name in self._files(variant)[1]:
            self._copy(iteration, variant, name)
        self._latest = max(self._latest, iteration)
        mark = fingerprint(self._directory(iteration))
        self.story.saves[mark] = Save(iteration, variant)
        if self._megatron:
            self._stamp(self._root / TRACKER, self._note_latest)

    def _note_latest(self, path: Path) -> None:
        path.write_text(str(self._latest))

    def _copy(self, iteration: int, variant: str, name: Path) -> None:
        """In two pieces, in place, as big files are written."""
        content = (self._variants[variant] / name).read_bytes()
        target = self._directory(iteration) / name
        target.parent.mkdir(parents=True, exist_ok=True)

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                stream.write(content[: len(content) // 2])
                stream.flush()
                self._pause(0.01)
                stream.write(content[len(content) // 2 :])

        self._stamp(target, write)

    def _stamp(self, path: Path, write: object) -> None:
        """The clock of the machine that trains is ``age`` seconds behind ours."""
        assert callable(write)
        write(path)
        if self._age:
            moment = time.time() - self._age
            os.utime(path, (moment, moment))

    def _forget(self, iteration: int) -> None:
        for save in self.story.saves.values():
            if save.iteration == iteration:
                save.on_disk = False

    def _pause(self, most: float) -> None:
        time.sleep(self._random.random() * most)


@contextlib.contextmanager
def trained(training: Training):  # type: ignore[no-untyped-def]
    """``training`` goes on while the block runs; it has ended after it."""
    training.start()
    try:
        yield training
    finally:
        training.join(300)
        if training.error is not None:
            raise training.error
