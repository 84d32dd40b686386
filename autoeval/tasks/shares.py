"""A task whose items are evaluated in shares, by several jobs: how it is cut, and which shares are there.

    <directory>/shares/<fingerprint>-<version>/<task>/cut.json       how large the shares are; written by who deals out
                                                      items.json     which items each has; by who evaluates the first
                                                      share3.json    what was found for one; where it is, it is done

What is there outlives the jobs and the daemon: whoever begins anew goes on with the shares that are not. When all are, they
are joined into the task's one result, and removed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from autoeval.tasks.plan import EvaluationPlan, file_name
from recorder.files import write_json


@dataclass(frozen=True)
class Cut:
    """``task`` in as many shares as there are ``weights``, which say what part of its cost each is."""

    task: str
    weights: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the shares: by these they are claimed, and told of."""
        return tuple(
            f"{self.task} (share {number} of {len(self.weights)})" for number in range(1, len(self.weights) + 1)
        )


@dataclass(frozen=True)
class Dealt:
    """What the jobs of a checkpoint begin with, ``parts`` in their order. In them, and in ``turns``, are names of tasks, and of
    shares of those in ``cuts``. ``turns`` has all, in the order in which who has nothing of its own tries to begin them."""

    parts: tuple[tuple[str, ...], ...]
    cuts: tuple[Cut, ...] = ()
    turns: tuple[str, ...] = ()


class ShareFiles:
    """Those of one task of a plan."""

    def __init__(self, plan: EvaluationPlan, task: str, version: str) -> None:
        self.directory = _of_version(plan, version) / file_name(task)
        self._task = task

    @property
    def items_path(self) -> Path:
        return self.directory / "items.json"

    def path(self, number: int) -> Path:
        """Of share ``number``, from 0."""
        return self.directory / f"share{number}.json"

    def left(self, cut: Cut) -> list[str]:
        """The names of the shares that are not there. Of two processes that each wrote one of the last two before they asked,
        one at least sees that all are: a directory is opened anew, for then a network file system looks again."""
        try:
            there = {path.name for path in self.directory.iterdir()}
        except FileNotFoundError:
            there = set()
        return [name for number, name in enumerate(cut.names) if self.path(number).name not in there]

    def cut(self) -> Cut | None:
        """As it was cut before; its shares may be there."""
        try:
            weights = json.loads((self.directory / "cut.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = isinstance(weights, list) and len(weights) > 1 and all(isinstance(one, float) for one in weights)
        return Cut(self._task, tuple(weights)) if known else None

    def keep(self, cut: Cut) -> None:
        """Cut like this from now on."""
        write_json(self.directory / "cut.json", list(cut.weights))


def remove_shares(plan: EvaluationPlan, task: str) -> None:
    """Those of any version of ``task``, of this save."""
    for versions in Path(plan.directory, "shares").glob(f"{plan.checkpoint.fingerprint[:12]}-*"):
        shutil.rmtree(versions / file_name(task), ignore_errors=True)


def remove_other_shares(plan: EvaluationPlan) -> None:
    """Those of other saves of the iteration."""
    for versions in Path(plan.directory, "shares").glob("*-*"):
        if not versions.name.startswith(f"{plan.checkpoint.fingerprint[:12]}-"):
            shutil.rmtree(versions, ignore_errors=True)


def _of_version(plan: EvaluationPlan, version: str) -> Path:
    return Path(plan.directory, "shares", f"{plan.checkpoint.fingerprint[:12]}-{file_name(version)}")
