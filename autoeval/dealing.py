"""Which tasks of a checkpoint go to the same job: as many shares as there are slots, balanced by what tasks have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median

from autoeval.partitioners.balanced import balanced, estimated
from autoeval.runners.rounds import load_seconds_key
from autoeval.runners.worker_process import last_listed
from autoeval.tasks.plan import EvaluationPlan
from recorder.ledger import Ledger

RECENT = 5  # results that count: models are replaced, machines too


def shares_of(ledger: Ledger, plan: EvaluationPlan, names: Sequence[str], slots: int) -> list[list[str]]:
    """``names`` dealt out to at most ``slots`` jobs, the longest share first.

    By the seconds that these versions of the tasks took on earlier checkpoints of the model; for a task that was never
    measured by its size. Tasks whose prompts begin alike stay together, unless they would be more than a job's fair
    share.
    """
    listed = last_listed(asdict(plan.tasks))
    seconds = measured_seconds(ledger, plan, names)
    cost = estimated(list(names), seconds, listed.sizes)
    bundles = _bundles(names, listed.families, cost, slots)
    bundled = {bundle: sum(seconds[name] for name in bundle) for bundle in bundles if all(n in seconds for n in bundle)}
    sizes = {bundle: sum(listed.sizes.get(name, 1.0) for name in bundle) for bundle in bundles}
    load = float(ledger.recall(load_seconds_key(plan.checkpoint.model)) or 0.0)
    dealt = balanced(bundles, bundled, slots, load_seconds=load, sizes=sizes)
    return [[name for bundle in share for name in bundle] for share in dealt]


def measured_seconds(ledger: Ledger, plan: EvaluationPlan, names: Sequence[str]) -> dict[str, float]:
    """The median wall seconds of each task's last results in the plan's version of it."""
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


def _bundles(
    names: Sequence[str], families: Mapping[str, str], cost: Mapping[str, float], slots: int
) -> list[tuple[str, ...]]:
    """Tasks that are dealt out as one."""
    fair = sum(cost.values()) / slots
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(families.get(name, name), []).append(name)
    bundles: list[tuple[str, ...]] = []
    for family in together.values():
        whole = sum(cost[name] for name in family) <= fair
        bundles += [tuple(family)] if whole else [(name,) for name in family]
    return bundles
