"""evaluator.yaml read again while the daemon runs (SIGHUP): what changed, and when each change can take effect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.config import AutoEval
from autoeval.views import Views
from autoeval.watched_run import WatchedRun
from autoeval.work_directories import WorkDirectories
from autoeval.yaml_file import ConfigError

logger = logging.getLogger(__name__)

Tasks = tuple[tuple[str, str], ...]  # (name, version) of each
# What is looked up each time it is needed. Everything else is part of what a run was made of: it is made anew.
AT_ONCE = frozenset({"baselines", "wandb", "lark", "slack", "webhook", "order", "max_backlog", "logs"})
LIMITS = frozenset({"max_attempts", "retry", "task_time_limit", "heartbeat_timeout"})  # of ``runner``


@dataclass(frozen=True)
class Wanted:
    """One run as the configuration now has it."""

    config: AutoEval
    tasks: Tasks

    @property
    def key(self) -> tuple[Path, str]:
        return self.config.work_dir, self.config.model_name


@dataclass(frozen=True)
class Changes:
    """``at_once``: runs of which nothing but what is looked up changed. ``anew``: runs that are made again, between two
    checkpoints. ``fixed``: (run, key) of what only a restart can change; the old value is kept."""

    added: tuple[Wanted, ...] = ()
    removed: tuple[tuple[Path, str], ...] = ()
    at_once: tuple[Wanted, ...] = ()
    anew: tuple[Wanted, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    changed_keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.at_once or self.anew)

    @property
    def need_quiet(self) -> bool:
        """Whether nothing may be at work when they are made: a worker may also convert ahead for another run."""
        return bool(self.removed or self.anew)


def compare(old: Sequence[Wanted], new: Sequence[Wanted]) -> Changes:
    """From the runs as they are to those of the file."""
    present = {one.key: one for one in old}
    new, fixed = _with_what_is_fixed(present, list(new))
    added, at_once, anew = [], [], []
    keys: set[str] = set()
    for wanted in new:
        former = present.pop(wanted.key, None)
        if former is None:
            added.append(wanted)
            continue
        changed = _changed(former.config, wanted.config)
        if former.tasks != wanted.tasks:
            changed.add("tasks")
        keys |= {f"{wanted.config.model_name}: {key}" for key in changed}
        if changed - AT_ONCE - {f"runner.{limit}" for limit in LIMITS}:
            anew.append(wanted)
        elif changed:
            at_once.append(wanted)
    return Changes(tuple(added), tuple(present), tuple(at_once), tuple(anew), tuple(fixed), tuple(sorted(keys)))


def _with_what_is_fixed(
    present: dict[tuple[Path, str], Wanted], new: list[Wanted]
) -> tuple[list[Wanted], list[tuple[str, str]]]:
    """``new`` with the old values of what cannot change while the daemon runs."""
    fixed = []
    claimed = {one.key for one in new}
    for place, wanted in enumerate(new):
        model = wanted.config.model_name
        if wanted.key not in present:  # the same model elsewhere: its work directory was changed
            elsewhere = [key for key in present if key[1] == model and key not in claimed]
            if elsewhere:
                config = wanted.config.model_copy(update={"work_dir": elsewhere[0][0]})
                wanted = new[place] = Wanted(config, wanted.tasks)
                claimed.add(wanted.key)
                fixed.append((model, "work_dir"))
        former = present.get(wanted.key)
        if former is not None and former.config.runner.type != wanted.config.runner.type:
            config = wanted.config.model_copy(update={"runner": former.config.runner})
            new[place] = Wanted(config, wanted.tasks)
            fixed.append((model, "runner.type"))
    return new, fixed


def _changed(old: AutoEval, new: AutoEval) -> set[str]:
    """Names of the keys, those of ``runner`` one by one."""
    found: set[str] = set()
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name == "runner":
            fields = type(after).model_fields
            found |= {f"runner.{key}" for key in fields if getattr(before, key, None) != getattr(after, key)}
        else:
            found.add(name)
    return found


class Reader:
    """Reads the configuration in a thread, for finding out the tasks' versions takes seconds.

    ``on_end`` is called from there with a list of ``Wanted``, or with what is wrong with the file, a ``ConfigError``.
    """

    def __init__(self, read: Callable[[], list[Wanted]], on_end: Callable[[Any], None]):
        self._read = read
        self._on_end = on_end
        self.going = self._again = False

    def begin(self) -> None:
        """For the main thread, as ``ended`` is. While it is being read it is noted to be read once more."""
        if self.going:
            self._again = True
            return
        self.going = True
        threading.Thread(target=self._work, name="reload", daemon=True).start()

    def _work(self) -> None:
        try:
            found: Any = self._read()
        except Exception as error:  # a thread that dies would leave the old configuration without a word
            found = error if isinstance(error, ConfigError) else ConfigError(f"{type(error).__name__}: {error}")
        self._on_end(found)

    def ended(self) -> None:
        self.going = False
        if self._again:
            self._again = False
            self.begin()


def tell(changes: Changes) -> None:
    """In the log: what changes now, what between two checkpoints, what not at all."""
    for model, key in changes.fixed:
        logger.warning("SIGHUP: %s: auto_eval.%s cannot change without a restart; the old value is kept", model, key)
    if not changes:
        logger.info("SIGHUP: the configuration was read again: nothing %schanged", "else " if changes.fixed else "")
        return
    told = [
        *(f"new run {one.config.model_name}" for one in changes.added),
        *(f"run {model} is watched no more" for _, model in changes.removed),
        *changes.changed_keys,
    ]
    logger.info("SIGHUP: the configuration was read again: %s", "; ".join(told))


class Reload:
    """What SIGHUP brings about in a daemon. For its main thread, but for what ``read`` does.

    ``read`` gives the runs as the file has them or raises ``ConfigError``; ``on_end`` is called from another thread with
    what it gave or raised, and must bring that to ``take``.
    """

    def __init__(
        self,
        read: Callable[[], list[Wanted]],
        directories: WorkDirectories,
        on_end: Callable[[list[Wanted] | Exception], None],
    ):
        self._reader = Reader(read, on_end)
        self._directories = directories
        self._changes = Changes()
        self.unmade: list[Wanted] = []  # while ``make`` is at it: runs that are closed and not open again

    def begin(self) -> None:
        self._reader.begin()

    @property
    def pending(self) -> bool:
        """Whether somebody was told of changes, or will be, that are not made yet."""
        return self._reader.going or bool(self._changes)

    def take(self, found: list[Wanted] | Exception, runs: Sequence[WatchedRun], at_work: str | None) -> None:
        """``at_work`` names the checkpoint that is being evaluated."""
        self._reader.ended()
        if isinstance(found, Exception):
            logger.error("SIGHUP: the configuration is wrong, the old one stays: %s", found)
            return
        self._changes = compare([Wanted(run.config, run.tasks) for run in runs], found)
        tell(self._changes)
        if at_work is not None and self._changes.need_quiet:
            logger.info("SIGHUP: this waits for the end of %s", at_work)

    def is_due(self, at_work: bool) -> bool:
        return bool(self._changes) and not (at_work and self._changes.need_quiet)

    @property
    def needs_no_worker(self) -> bool:
        """Whether it may be converting ahead what is to be made anew."""
        return self._changes.need_quiet

    def make(
        self, runs: list[WatchedRun], views: dict[WatchedRun, Views], new_run: Callable[[Wanted], WatchedRun]
    ) -> list[WatchedRun]:
        """Change ``runs`` and ``views``; the runs that are new or were made anew, which nobody watches yet.

        What ``new_run`` raises is passed on; ``unmade`` then has what ``runs`` lacks.
        """
        changes, self._changes = self._changes, Changes()
        try:
            present_or_new = (*changes.added, *changes.at_once, *changes.anew)
            self._directories.hold({one.key[0]: one.config.logs.limits for one in present_or_new})
        except (ConfigError, OSError) as error:
            logger.error("SIGHUP: the new configuration cannot take effect, the old one stays: %s", error)
            return []
        present = {(run.config.work_dir, run.config.model_name): run for run in runs}
        for wanted in changes.at_once:
            present[wanted.key].take_settings(wanted.config)
        self.unmade = [*changes.added, *changes.anew]
        for key in (*changes.removed, *(one.key for one in changes.anew)):
            runs.remove(present[key])
            present[key].close(keep_pins=key not in changes.removed)
        for key in changes.removed:
            views.pop(present[key]).close()
        made = []
        while self.unmade:
            wanted = self.unmade[0]
            run = new_run(wanted)
            del self.unmade[0]
            runs.append(run)
            made.append(run)
            if (former := present.get(wanted.key)) is not None:
                views[run] = views.pop(former)  # what it is at goes on, and is ended with the daemon
                views[run].run = run
        self._directories.keep_only({run.config.work_dir for run in runs})
        return made
