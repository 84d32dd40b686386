"""Which of a former daemon's jobs a new one cancels at its start."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoeval.clusters import Clusters
from autoeval.runner_sections import LocalRunner, SlurmRunner
from autoeval.watched_run import WatchedRun


class Noted:
    """A worker that takes down what is wanted still."""

    def __init__(self) -> None:
        self.wanted: list[set[str]] = []

    def settle(self, wanted: Collection[str]) -> None:
        self.wanted.append(set(wanted))


@pytest.mark.parametrize(
    ("section", "trouble", "wanted"),
    [
        (SlurmRunner(type="slurm"), "", {"new"}),
        (SlurmRunner(type="slurm"), "the store does not answer", {"old", "new"}),
        (LocalRunner(), "the store does not answer", set()),
    ],
)
def test_jobs_of_a_store_that_does_not_answer_are_left(
    section: Any, trouble: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [SimpleNamespace(fingerprint=name) for name in ("old", "new")]
    seen = [] if trouble else [SimpleNamespace(ref=SimpleNamespace(fingerprint="new"))]
    run = SimpleNamespace(
        config=SimpleNamespace(model_name="m", runner=section, conversion_runner=None),
        ledger=SimpleNamespace(jobs=lambda _model: jobs),
        trouble=trouble,
        waiting=lambda: seen,
    )
    clusters, noted = Clusters(lambda _worker, _event: None), Noted()
    monkeypatch.setattr(clusters, "of", lambda _run: noted)
    clusters.settle(cast(WatchedRun, run))
    assert noted.wanted == [wanted]
