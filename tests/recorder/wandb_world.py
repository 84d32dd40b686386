"""A ledger with checkpoints, an imitation of W&B's server, and what both say."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from wandb_answers import ENTITY, RunState

from recorder.ledger import Ledger
from recorder.refresh import publish_to_wandb, read_settings
from recorder.results import CheckpointRef, Score, TaskResult, write_result
from recorder.wandb_publisher import Outcome
from recorder.wandb_rows import run_id


def history(run: RunState) -> dict[tuple[int, str], float]:
    """The last value of each (iteration, metric)."""
    return {at: value for row in run.history for at, value in _values(row)}


def doubled(run: RunState) -> list[tuple[int, str]]:
    """The (iteration, metric) that stand in more than one row."""
    counts = Counter(at for row in run.history for at, _ in _values(row) if at[1] not in ("iteration", "tokens"))
    return sorted(at for at, count in counts.items() if count > 1)


def _values(row: dict[str, Any]) -> list[tuple[tuple[int, str], float]]:
    """Of a model's row; a leaderboard's has no iteration."""
    if "iteration" not in row:
        return []
    return [((row["iteration"], key), value) for key, value in row.items() if not key.startswith("_")]


class World:
    """A work directory as the daemon keeps one, published to the server at ``url``."""

    def __init__(self, path: Path, url: str | None, mode: str = "online", baselines: str | None = None):
        self.path = path
        self.url = url
        path.mkdir(parents=True, exist_ok=True)
        self.baselines = path / "baselines.yaml" if baselines else None
        if self.baselines and baselines:
            self.baselines.write_text(baselines)
        self.expected: dict[str, dict[tuple[int, str], float]] = {}
        self.set_mode(mode)

    def set_mode(self, mode: str) -> None:
        wandb = {"mode": mode, "project": "proj", "entity": ENTITY, "base_url": self.url}
        content = {"project": "proj", "title": "A run", "baselines": str(self.baselines) if self.baselines else None}
        (self.path / "settings.json").write_text(json.dumps({**content, "wandb": wandb}))

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.sqlite"

    def ledger(self) -> Any:
        return closing(Ledger(self.ledger_path))

    def evaluated(
        self,
        model: str,
        iteration: int,
        values: dict[str, float],
        *,
        save: str = "",
        state: str = "evaluated",
        path: str = "",
        write_files: bool = False,
    ) -> None:
        """A checkpoint with the metric ``acc`` for each task of ``values``."""
        ref = CheckpointRef(
            model, iteration, save or f"save-{iteration}", path or f"/ckpt/{iteration}", iteration * 1e-3
        )
        with self.ledger() as ledger:
            ledger.note_checkpoint(ref, state)
            for task, value in values.items():
                score, cost = Score("acc", value, 0.01, 100, True, 0.25), {"wall_seconds": 2.0}
                one = TaskResult(ref, task, "v1", "icl", (score,), cost=cost, finished_at=1.0)
                if write_files:
                    write_result(self.path / f"{model}/iter_{iteration:07d}/results/{model}/{task}.json", one)
                ledger.ingest(one)
        expected = self.expected.setdefault(model, {})
        for task, value in values.items():
            expected |= {(iteration, f"{task}.acc"): value, (iteration, f"{task}.acc_stderr"): 0.01}
        expected |= {(iteration, "iteration"): iteration, (iteration, "tokens"): iteration * 1e-3}
        shares = [expected[iteration, key] for at, key in expected if at == iteration and key.endswith(".acc")]
        expected[iteration, "average"] = math.fsum((share - 0.25) / (1 - 0.25) for share in shares) / len(shares)

    def publish(self, *, at_once: bool = True, verify: bool = False) -> Outcome:
        return publish_to_wandb(
            self.ledger_path, read_settings(self.path / "settings.json"), at_once=at_once, verify=verify
        )

    def pending(self) -> int:
        with self.ledger() as ledger:
            return len(ledger.outbox_pending(f"wandb:online/{self.url}/{ENTITY}/proj"))

    def shown_wrongly(self, runs: Iterator[RunState] | list[RunState]) -> list[str]:
        """How W&B's history differs from the ledger; empty when it is the same, value by value."""
        by_id = {run.name: run for run in runs}
        wrong = []
        for model, expected in self.expected.items():
            base = run_id("proj", model)
            mine = [run for name, run in by_id.items() if name == base or name.startswith(f"{base}-")]
            shown = history(mine[-1]) if mine else {}
            shown = {key: value for key, value in shown.items() if not key[1].startswith("cost/")}
            wrong += [
                f"{model}: {key}: {shown.get(key)}, expected {expected[key]}"
                for key in expected
                if shown.get(key) != expected[key]
            ]
            wrong += [f"{model}: {key} is not in the ledger" for key in shown.keys() - expected.keys()]
            newest = max(iteration for iteration, _ in expected)
            summary = mine[-1].summary if mine else {}
            wrong += [
                f"{model}: summary {key}: {summary.get(key)}"
                for (at, key), value in expected.items()
                if at == newest and summary.get(key) != value
            ]
        return wrong
