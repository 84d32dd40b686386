"""Which models and metrics stand on the leaderboard: for every view the same, as ``wandb_writer.py`` was last asked.

The choice (``excluded_models``, ``leaderboard_metrics``) is remembered in the ledger, so that the daemon's next rebuild
of leaderboard.csv, report and W&B shows the board that was asked for, not another one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from recorder.baselines import Baseline
from recorder.leaderboard import LeaderboardRow, Scoring, Which, leaderboard, metric_columns, metric_key, of_one_version
from recorder.ledger import Ledger, ScoreRow, Standing
from recorder.published_models import PublishedModel, courses, levels

_KEY = "leaderboard-choice"


@dataclass(frozen=True)
class Choice:
    """``metrics`` (``<task>.<metric>``) in the order of the columns, none for all; ``excluded`` names models.

    ``iterations`` says what stands for a model: ``latest`` (when it is not named), ``best``, or an iteration.
    """

    metrics: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    iterations: tuple[tuple[str, int | Which], ...] = ()
    scoring: Scoring = "chance"


@dataclass(frozen=True)
class Board:
    """What stands on the leaderboard, made of the chosen ``scores`` and ``baselines``; ``columns`` are metrics."""

    rows: list[LeaderboardRow]
    columns: list[str]
    scores: list[ScoreRow]
    baselines: list[Baseline]
    choice: Choice = field(default_factory=Choice)

    def over_training(self, which: Which = "all") -> list[LeaderboardRow]:
        """The same board with other iterations than the newest; the highest score first."""
        return leaderboard(self.scores, self.baselines, which=which, scoring=self.choice.scoring)


def build_board(
    scores: Sequence[ScoreRow], baselines: Sequence[Baseline], choice: Choice, standing: Standing | None = None
) -> Board:
    """``standing`` is what the ledger knows, without the excluded models, of scores that are not among these."""
    wanted = set(choice.metrics)
    scores = of_one_version([r for r in scores if r.model not in choice.excluded], standing)
    scores = [r for r in scores if metric_key(r) in wanted] if wanted else scores
    baselines = [_only(b, wanted) if wanted else b for b in baselines if b.name not in choice.excluded]
    rows = leaderboard(scores, baselines, chosen=dict(choice.iterations), scoring=choice.scoring, standing=standing)
    known = metric_columns(rows)
    columns = [key for key in choice.metrics if key in known] or known
    return Board(rows, columns, scores, baselines, choice)


def board_of(ledger: Ledger, models: Sequence[PublishedModel], choice: Choice) -> Board:
    """The board alone, of as few scores as decide it: for a large ledger, when no curves are wanted.

    The same rows as ``build_board`` of all scores, columns of metrics that no shown row has aside.
    """
    standing = ledger.standing(choice.excluded)
    most: dict[str, int] = {}
    for (model, _), count in standing.results.items():
        most[model] = max(count, most.get(model, 0))
    whole = {model: at for (model, at), count in sorted(standing.results.items()) if count == most[model]}
    for model, at in choice.iterations:
        if model in whole and at == "best":
            whole[model] = 0
    named = {model: at for model, at in choice.iterations if isinstance(at, int)}
    own = sorted(whole.keys() - set(choice.excluded))
    scores = [*ledger.scores(models=own, since=whole, named=named), *courses(models)]
    return build_board(scores, levels(models), choice, standing)


def remember_choice(ledger: Ledger, choice: Choice) -> None:
    ledger.remember(_KEY, json.dumps(asdict(choice)))


def remembered_choice(ledger: Ledger) -> Choice:
    """The choice made last; all models and metrics when none was."""
    known = json.loads(ledger.recall(_KEY) or "{}")
    return Choice(
        metrics=tuple(known.get("metrics", ())),
        excluded=tuple(known.get("excluded", ())),
        iterations=tuple((model, at) for model, at in known.get("iterations", ())),
        scoring=known.get("scoring", "chance"),
    )


def _only(baseline: Baseline, wanted: set[str]) -> Baseline:
    return replace(
        baseline,
        values={key: value for key, value in baseline.values.items() if key in wanted},
        stderrs={key: value for key, value in baseline.stderrs.items() if key in wanted},
    )
