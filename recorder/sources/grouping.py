"""One benchmark out of its parts: MMLU of its 57 subjects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from recorder.sources.known_tasks import GROUPS
from recorder.sources.measurement import Measured, Measurement


def grouped(
    measurement: Measurement, asked: Mapping[str, str | Sequence[str]] | None
) -> dict[str, dict[str, Measured]]:
    """The tasks, with the members of a group replaced by their average.

    A group that the file has an average of keeps it. ``asked`` gives others (name -> patterns of members), ``None`` the
    usual ones (``GROUPS``), an empty mapping none at all: then every task stands as it is in the file.
    """
    if asked is not None and not asked:
        return measurement.tasks
    tasks = dict(measurement.tasks)
    for member in {one for of_group in measurement.groups.values() for one in of_group}:
        tasks.pop(member, None)  # a group within a group too: the outermost stands
    for name, patterns in (GROUPS if asked is None else asked).items():
        wanted = [patterns] if isinstance(patterns, str) else patterns
        found = [task for task in tasks if task != name and any(fnmatchcase(task, one) for one in wanted)]
        if found and name not in measurement.tasks:
            average = pooled([tasks[task] for task in found])
            tasks = {task: metrics for task, metrics in tasks.items() if task not in found}
            tasks[name] = average
    return tasks


def pooled(parts: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """Mean over all items of the parts, as lm-evaluation-harness groups them (``weight_by_size``); SE^2 = sum w^2 SE^2.

    Every part weighs the same where the number of items is not known; only metrics that all parts have.
    """
    shared = [metric for metric in parts[0] if all(metric in part for part in parts)]
    found = {}
    for metric in shared:
        ones = [part[metric] for part in parts]
        known = all(one.n > 0 for one in ones)
        total = sum(one.n for one in ones) if known else len(ones)
        weights = [one.n / total if known else 1 / total for one in ones]
        errors = [one.stderr for one in ones]
        stderr = None
        if all(error is not None for error in errors):
            stderr = math.sqrt(math.fsum((w * (e or 0.0)) ** 2 for w, e in zip(weights, errors, strict=True)))
        value = math.fsum(w * one.value for w, one in zip(weights, ones, strict=True))
        items = {key: outcome for one in ones for key, outcome in one.items.items()}
        kept = items if all(one.items for one in ones) else {}
        found[metric] = Measured(value, stderr, total if known else 0, ones[0].higher_is_better, kept)
    return found
