"""Models that were measured elsewhere and brought in by ``wandb_writer.py``.

They are remembered in ``published_models.json`` beside the ledger, so that a ledger that is deleted loses none. They are
no checkpoints of ours, so they don't stand among the ledger's scores (a score measured with another harness would change
what the curves show); each view puts them beside ours. One with several rows has a course over training like a run of
ours (``courses``); one with a single row is a level to compare with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recorder.baselines import Baseline
from recorder.files import write_json
from recorder.leaderboard import ELSEWHERE
from recorder.ledger import Ledger, LedgerError, Outcomes, ScoreRow

FILE = "published_models.json"
_KEY = "published-models"  # of the ledger's settings, where they were before the file


@dataclass(frozen=True)
class PublishedRow:
    """One measurement. ``values``, ``stderrs`` and ``n`` (items) by ``<task>.<metric>``; ``tokens`` in billions.

    ``items``: by ``<task>.<metric>`` the outcome of each item by its key, where the source has them.
    """

    iteration: int
    tokens: float | None
    values: dict[str, float]
    stderrs: dict[str, float] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedModel:
    """``rows`` by iteration; most have one. ``source`` says where the figures stand.

    ``chance`` is what guessing gives, where it is known, and ``lower`` names the metrics that are better when lower.
    """

    name: str
    source: str
    rows: tuple[PublishedRow, ...]
    chance: dict[str, float] = field(default_factory=dict)
    lower: tuple[str, ...] = ()

    def newest(self) -> Baseline:
        """What stands for the model on the leaderboard."""
        row = self.rows[-1]
        return Baseline(
            self.name, row.tokens, dict(row.values), self.source, dict(row.stderrs), dict(self.chance), self.lower
        )

    def outcomes(self, iteration: int) -> dict[str, Outcomes]:
        """As ``Ledger.outcomes``."""
        return {key: Outcomes(of) for row in self.rows if row.iteration == iteration for key, of in row.items.items()}

    def scores(self) -> list[ScoreRow]:
        """Its rows as scores, in the order of their files; of no version of ours."""
        return [
            ScoreRow(
                model=self.name,
                iteration=row.iteration,
                tokens=row.tokens,
                task=key.rpartition(".")[0],
                task_version="",
                metric=key.rpartition(".")[2],
                value=value,
                stderr=row.stderrs.get(key),
                n=row.n.get(key, 0),
                higher_is_better=key not in self.lower,
                source=ELSEWHERE,
                superseded=False,
                recorded_at=0.0,
                chance=self.chance.get(key),
                fingerprint="",
                position=place,
            )
            for row in self.rows
            for place, key, value in _placed(row.values)
        ]


def _placed(values: dict[str, float]) -> Iterable[tuple[int, str, float]]:
    """(place among the metrics of its task, key, value)."""
    counted: dict[str, int] = {}
    for key, value in values.items():
        task = key.rpartition(".")[0]
        counted[task] = counted.get(task, -1) + 1
        yield counted[task], key, value


def courses(models: Iterable[PublishedModel]) -> list[ScoreRow]:
    """The scores of the models with several rows."""
    return [score for model in models if len(model.rows) > 1 for score in model.scores()]


def levels(models: Iterable[PublishedModel]) -> list[Baseline]:
    """The models with a single row: on the board they have no iteration."""
    return [model.newest() for model in models if len(model.rows) == 1]


def of_baseline(baseline: Baseline, iteration: int = 0) -> PublishedModel:
    row = PublishedRow(iteration, baseline.tokens, dict(baseline.values), dict(baseline.stderrs))
    return PublishedModel(baseline.name, baseline.source, (row,), dict(baseline.chance), baseline.lower)


def remembered(ledger: Ledger) -> list[PublishedModel]:
    """All models that were brought in, by name. Raises ``LedgerError`` naming the file when it cannot be read."""
    path = ledger.path.with_name(FILE)
    try:
        known = json.loads(path.read_text(encoding="utf-8") if path.exists() else ledger.recall(_KEY) or "[]")
        return [_parse(entry) for entry in known]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"{path}: cannot be read ({error}): delete it and run wandb_writer.py again") from error


def remember(ledger: Ledger, models: Iterable[PublishedModel]) -> None:
    """Bring models in; one with a known name replaces it. Only the holder of the publisher's lock may."""
    known = {model.name: model for model in remembered(ledger)}
    known |= {model.name: model for model in models}
    write_json(ledger.path.with_name(FILE), [asdict(known[name]) for name in sorted(known)])


def together(ledger: Ledger, baselines: Sequence[Baseline]) -> list[PublishedModel]:
    """``baselines`` (of ``baselines.yaml``) and the remembered models; of one name the former counts."""
    names = {baseline.name for baseline in baselines}
    return [of_baseline(baseline) for baseline in baselines] + [m for m in remembered(ledger) if m.name not in names]


def _parse(entry: dict[str, Any]) -> PublishedModel:
    return PublishedModel(
        entry["name"],
        entry["source"],
        tuple(PublishedRow(**row) for row in entry["rows"]),
        dict(entry.get("chance", {})),
        tuple(entry.get("lower", ())),
    )
