"""Which tasks of a checkpoint go to the same job: as many parts as there are slots, balanced by what tasks have cost.

A task that is much of a part's work is cut: its items are evaluated in shares, each by whoever comes to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from autoeval.partitioners.balanced import estimated, factored, length, longest_first
from autoeval.runners.rounds import load_seconds_key
from autoeval.runners.worker_process import TaskList, last_listed
from autoeval.tasks.plan import EvaluationPlan
from autoeval.tasks.shares import Cut, Dealt, ShareFiles
from recorder.ledger import Ledger

RECENT = 5  # results that count: models are replaced, machines too
MUCH = 0.5  # of a part's fair share of all: what is more is cut, so that who is slow can be relieved of some
LEAST_SECONDS = 2.0  # of a share: benchmarks/shares.py says what one costs besides
LEAST_TOKENS = 20_000.0  # of a share, where nothing was measured


def dealt_out(ledger: Ledger, plan: EvaluationPlan, names: Sequence[str], slots: int) -> Dealt:
    """``names`` dealt out to at most ``slots`` jobs, the longest part first.

    By the seconds that these versions of the tasks took on earlier checkpoints of the model; for a task that was never
    measured by its size. Tasks whose prompts begin alike stay together, unless they would be more than a job's fair
    share. How a task is cut is kept on disk: whoever deals out the rest of it again keeps what is there of it.
    """
    if not names:
        return Dealt(())
    seconds = measured_seconds(ledger, plan, names)
    listed = last_listed(asdict(plan.tasks))
    load = float(ledger.recall(load_seconds_key(plan.checkpoint.model)) or 0.0)
    work = _Work.of(plan, names, seconds, listed, load)
    # Where nothing was measured, sizes are no seconds to be compared with those of loading: all slots are used.
    widths = range(1, slots + 1) if seconds else [slots]
    divisions = [_Division(work, width) for width in widths]
    # The first of those that are equally good: fewer parts.
    best = min(divisions, key=lambda division: division.longest + (load if seconds else 0.0) * len(division.parts))
    for cut in best.cuts.values():
        if cut.task not in work.begun:
            ShareFiles(plan, cut.task, dict(plan.expected)[cut.task]).keep(cut)
    return best.dealt()


def measured_seconds(ledger: Ledger, plan: EvaluationPlan, names: Sequence[str]) -> dict[str, float]:
    """The median wall seconds of each task's last results in the plan's version of it; of all shares together, where it was
    cut."""
    versions = dict(plan.expected)
    rows = ledger.query(
        "SELECT task, task_version, wall_seconds FROM costs WHERE model = ? AND wall_seconds IS NOT NULL "
        "ORDER BY finished_at DESC",
        (plan.checkpoint.model,),
    )
    found: dict[str, list[float]] = {}
    for task, version, wall in rows:
        if task in names and versions.get(task) == version and len(found.setdefault(task, [])) < RECENT:
            found[task].append(wall)
    return {task: median(values) for task, values in found.items()}


@dataclass(frozen=True)
class _Work:
    """All that is to be dealt out. ``begun``: tasks that were cut before, of which ``cost`` is that of what is ``left``."""

    names: Sequence[str]
    cost: Mapping[str, float]
    listed: TaskList
    begun: Mapping[str, Cut]
    left: Mapping[str, Sequence[str]]
    least: float
    least_task: float

    @classmethod
    def of(
        cls, plan: EvaluationPlan, names: Sequence[str], seconds: Mapping[str, float], listed: TaskList, load: float
    ) -> _Work:
        cost = estimated(list(names), seconds, listed.sizes)
        begun, left = {}, {}
        for name, version in plan.expected:
            files = ShareFiles(plan, name, version)
            if name in cost and (cut := files.cut()) is not None:
                begun[name], left[name] = cut, files.left(cut)
                cost[name] *= sum(_weights(cut)[share] for share in left[name])
        least = LEAST_SECONDS if seconds else LEAST_TOKENS
        return cls(names, cost, listed, begun, left, least, load if seconds else 0.0)


class _Division:
    """``work`` for exactly ``width`` parts, or as many as there is something for."""

    def __init__(self, work: _Work, width: int) -> None:
        self._work = work
        fair = sum(work.cost.values()) / width
        # A family that goes to one part shares more there than shares of one of it would gain elsewhere.
        apart = [
            bundle[0] for bundle in _bundles(work.names, work.listed.families, work.cost, fair) if len(bundle) == 1
        ]
        made = {name: self._cut(name, width, fair) for name in work.names if name in apart or name in work.begun}
        self.cuts = {name: cut for name, cut in made.items() if cut is not None}
        self._cost = {name: work.cost[name] for name in work.names if name not in self.cuts}
        self._bundles = _bundles(list(self._cost), work.listed.families, self._cost, fair)
        for name, cut in self.cuts.items():
            self._take_shares(name, cut)
        whole = {bundle: sum(self._cost[step] for step in bundle) for bundle in self._bundles}
        ordered = sorted(self._bundles, key=lambda bundle: -whole[bundle])
        self.parts = longest_first(ordered, whole, min(width, len(ordered)))
        self.longest = length(self.parts[0], whole)

    def dealt(self) -> Dealt:
        turns = sorted(self._cost, key=lambda step: -self._cost[step])
        parts = tuple(tuple(step for bundle in part for step in bundle) for part in self.parts)
        return Dealt(parts, tuple(self.cuts.values()), tuple(turns))

    def _cut(self, name: str, width: int, fair: float) -> Cut | None:
        work, cost = self._work, self._work.cost[name]
        if name in work.begun:
            return work.begun[name]
        most = work.listed.most_shares.get(name, 1)
        if width == 1 or most < 2 or cost <= MUCH * fair or cost <= work.least_task:
            return None
        sizes = factored(cost, math.ceil(cost / fair), least=work.least, most=most)
        return Cut(name, tuple(sizes)) if len(sizes) > 1 else None

    def _take_shares(self, name: str, cut: Cut) -> None:
        """Each share that is left is dealt out by itself; a task of which all are there is to be joined."""
        left = self._work.left.get(name, cut.names)
        weights = _weights(cut)
        whole = sum(weights[share] for share in left) or 1.0
        steps = {share: self._work.cost[name] * weights[share] / whole for share in left} or {name: 0.0}
        self._cost |= steps
        self._bundles += [(step,) for step in steps]


def _weights(cut: Cut) -> dict[str, float]:
    return {name: weight / sum(cut.weights) for name, weight in zip(cut.names, cut.weights, strict=True)}


def _bundles(
    names: Iterable[str], families: Mapping[str, str], cost: Mapping[str, float], fair: float
) -> list[tuple[str, ...]]:
    """Tasks that are dealt out as one."""
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(families.get(name, name), []).append(name)
    bundles: list[tuple[str, ...]] = []
    for family in together.values():
        whole = sum(cost[name] for name in family) <= fair
        bundles += [tuple(family)] if whole else [(name,) for name in family]
    return bundles
