"""Which items of a task are not independent: questions about one passage, questions of one subject."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

from autoeval.openicl.sample import Sample
from recorder.statistics import clustered_standard_error

PASSAGES = ("passage", "context", "article", "paragraph", "evidence", "document")
SUBJECTS = ("subject", "topic", "category")
ENOUGH_SUBJECTS = 10  # fewer are strata rather than a sample of subjects, and too few to tell their spread


def clusters_of(samples: Sequence[Sample]) -> list[str | None]:
    """Of each sample what it shares with another one: a hash of its passage, else its subject; ``None`` if nothing."""
    for column in PASSAGES:
        texts = [sample.row.columns.get(column) for sample in samples]
        if all(isinstance(text, str) and text for text in texts):
            return _shared([hashlib.sha256(str(text).encode()).hexdigest()[:16] for text in texts])
    for column in SUBJECTS:
        named = [sample.row.columns.get(column) for sample in samples]
        if all(isinstance(name, str) for name in named) and len(set(map(str, named))) >= ENOUGH_SUBJECTS:
            return _shared([str(name) for name in named])
    return [None] * len(samples)


def stderr_with(
    clusters: Sequence[str | None], value: float, stderr: float | None, values: Sequence[float]
) -> float | None:
    """``stderr``, or where samples share something and ``value`` is their mean that of clusters (Miller 2024)."""
    if stderr is None or not any(clusters) or len(values) != len(clusters):
        return stderr
    if not math.isclose(math.fsum(values) / len(values), value, rel_tol=1e-9, abs_tol=1e-12):
        return stderr
    alone = [place if cluster is None else cluster for place, cluster in enumerate(clusters)]
    clustered = clustered_standard_error(values, alone)
    return stderr if clustered is None else max(stderr, clustered)


def _shared(names: Sequence[str]) -> list[str | None]:
    count = Counter(names)
    return [name if count[name] > 1 else None for name in names]
