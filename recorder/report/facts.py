"""All that the views of one ledger are made of, each thing computed once: for the report, and for messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeVar

from recorder.baselines import Baseline
from recorder.benchmark_health import BenchmarkHealth, benchmark_health
from recorder.board import Board, build_board, remembered_choice
from recorder.leaderboard import LeaderboardRow, is_share, main_metrics, metric_key
from recorder.ledger import CheckpointRow, Ledger, Outcomes, ScoreRow, TaskRow
from recorder.published_models import PublishedModel, courses
from recorder.trajectories import TaskTrajectories, task_trajectories
from recorder.trend import Worth, worth
from recorder.verdict import CheckpointVerdict, checkpoint_verdict

Answer = TypeVar("Answer")


class Facts:
    """Read once from the ledger when made; what is derived from it is computed when first asked for.

    ``models`` were measured elsewhere (``recorder.published_models``); one with several rows has a course of its own
    and is judged like a run, one with a single row is a level to compare with. Not for several threads.
    """

    def __init__(self, ledger: Ledger, baselines: Sequence[Baseline] = (), models: Sequence[PublishedModel] = ()):
        self.ledger = ledger
        self.baselines = list(baselines)
        self.published_models = list(models)
        self.checkpoints: list[CheckpointRow] = [row for row in ledger.checkpoints() if not row.superseded]
        self.superseded = sum(row.superseded for row in ledger.checkpoints())
        self.tasks: list[TaskRow] = [row for row in ledger.tasks() if not row.superseded]
        self.scores: list[ScoreRow] = [*ledger.scores(), *courses(models)]
        own = {row.model for row in self.checkpoints}
        self.models: list[str] = sorted(own) + sorted({row.model for row in self.scores} - own)
        self.own = own
        self._verdicts: dict[tuple[str, int], CheckpointVerdict | None] = {}
        self._worths: dict[str, Worth | None] = {}
        self._outcomes: dict[tuple[str, int], Mapping[str, Outcomes]] = {}

    @cached_property
    def board(self) -> Board:
        with_course = {row.model for row in self.scores}
        levels = [one for one in self.baselines if one.name not in with_course]
        return build_board(self.scores, levels, remembered_choice(self.ledger))

    @cached_property
    def every(self) -> list[LeaderboardRow]:
        """Every iteration of every model, and the baselines; the highest score first."""
        return self.board.over_training()

    @cached_property
    def main(self) -> dict[str, str]:
        """The metric with which each task enters the score."""
        return main_metrics(self.scores, self.baselines)

    @cached_property
    def shown_first(self) -> set[str]:
        """The main metrics, and the first metric of a task that cannot enter the average."""
        return set(self.main.values()) | {
            metric_key(row) for row in self.scores if row.position == 0 and row.task not in self.main
        }

    @cached_property
    def shares(self) -> set[str]:
        """The metrics in which every score lies between 0 and 1, up being good: a hundredth of them is a point."""
        unfit = {metric_key(row) for row in self.scores if not row.higher_is_better or not is_share(row.value)}
        return {metric_key(row) for row in self.scores} - unfit

    @cached_property
    def by_metric(self) -> dict[str, dict[str, list[ScoreRow]]]:
        """``<task>.<metric>`` -> model -> rows by iteration."""
        found: dict[str, dict[str, list[ScoreRow]]] = defaultdict(lambda: defaultdict(list))
        for row in sorted(self.scores, key=lambda row: row.iteration):
            found[metric_key(row)][row.model].append(row)
        return found

    @cached_property
    def best(self) -> dict[str, LeaderboardRow]:
        """Of each model the row with the highest score."""
        found: dict[str, LeaderboardRow] = {}
        for row in self.every:  # highest first
            if not row.is_baseline:
                found.setdefault(row.model, row)
        return found

    @cached_property
    def newest(self) -> dict[str, int]:
        """Of each model that has scores the highest iteration with one."""
        found: dict[str, int] = {}
        for row in self.scores:
            found[row.model] = max(row.iteration, found.get(row.model, row.iteration))
        return found

    def outcomes(self, model: str, iteration: int) -> Mapping[str, Outcomes]:
        """``ledger.outcomes``, read once; of a model that was measured elsewhere what its source has."""
        place = (model, iteration)
        if place not in self._outcomes:
            if model in self.own:
                self._outcomes[place] = self.ledger.outcomes(model, iteration)
            else:
                elsewhere = [one.outcomes(iteration) for one in self.published_models if one.name == model]
                self._outcomes[place] = elsewhere[0] if elsewhere else {}
        return self._outcomes[place]

    def verdict(self, model: str, iteration: int | None = None) -> CheckpointVerdict | None:
        """Of the newest checkpoint, or of ``iteration``; ``None`` when it has no scores."""
        at = self.newest.get(model) if iteration is None else iteration
        if at is None:
            return None
        if (model, at) not in self._verdicts:
            others = [one for one in self.baselines if one.name != model]
            self._verdicts[model, at] = checkpoint_verdict(
                self.scores, model, at, baselines=others, items=self.outcomes
            )
        return self._verdicts[model, at]

    def worth(self, model: str) -> Worth | None:
        if model not in self._worths:
            others = [one for one in self.baselines if one.name != model]
            self._worths[model] = worth(self.scores, model, baselines=others, items=self.outcomes)
        return self._worths[model]

    @cached_property
    def trajectories(self) -> list[TaskTrajectories]:
        """Of each model's main metrics that have items at two checkpoints or more."""
        found = []
        for model in self.models:
            by_metric: dict[str, dict[int, Outcomes]] = {}
            for iteration in sorted({row.iteration for row in self.scores if row.model == model}):
                for key, outcomes in self.outcomes(model, iteration).items():
                    if outcomes.values and key in self.shown_first:
                        by_metric.setdefault(key, {})[iteration] = outcomes
            found += [task_trajectories(model, k, course) for k, course in sorted(by_metric.items()) if len(course) > 1]
        return found

    def health(self, model: str) -> list[BenchmarkHealth]:
        return benchmark_health(self.scores, model, baselines=self.baselines)
