"""Models that were measured elsewhere and brought in by ``wandb_writer.py``: remembered in the ledger's settings.

They are no checkpoints of ours, so they don't stand among the ledger's scores (a score measured with another harness
would change what the curves show); each view puts them beside ours, as it does with ``baselines.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recorder.baselines import Baseline
from recorder.ledger import Ledger

_KEY = "published-models"


@dataclass(frozen=True)
class PublishedRow:
    """One measurement. ``values`` and ``stderrs`` by ``<task>.<metric>``; ``tokens`` in billions."""

    iteration: int
    tokens: float | None
    values: dict[str, float]
    stderrs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedModel:
    """``rows`` by iteration; most have one. ``source`` says where the figures stand."""

    name: str
    source: str
    rows: tuple[PublishedRow, ...]

    def newest(self) -> Baseline:
        """What stands for the model on the leaderboard."""
        row = self.rows[-1]
        return Baseline(self.name, row.tokens, dict(row.values), self.source, dict(row.stderrs))


def of_baseline(baseline: Baseline, iteration: int = 0) -> PublishedModel:
    row = PublishedRow(iteration, baseline.tokens, dict(baseline.values), dict(baseline.stderrs))
    return PublishedModel(baseline.name, baseline.source, (row,))


def remembered(ledger: Ledger) -> list[PublishedModel]:
    """All models that were brought in, by name."""
    return [_parse(entry) for entry in json.loads(ledger.recall(_KEY) or "[]")]


def remember(ledger: Ledger, models: Iterable[PublishedModel]) -> None:
    """Bring models in; one with a known name replaces it."""
    known = {model.name: model for model in remembered(ledger)}
    known |= {model.name: model for model in models}
    ledger.remember(_KEY, json.dumps([asdict(known[name]) for name in sorted(known)]))


def together(ledger: Ledger, baselines: Sequence[Baseline]) -> list[PublishedModel]:
    """``baselines`` (of ``baselines.yaml``) and the remembered models; of one name the former counts."""
    names = {baseline.name for baseline in baselines}
    return [of_baseline(baseline) for baseline in baselines] + [m for m in remembered(ledger) if m.name not in names]


def _parse(entry: dict[str, Any]) -> PublishedModel:
    return PublishedModel(entry["name"], entry["source"], tuple(PublishedRow(**row) for row in entry["rows"]))
