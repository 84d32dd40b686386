"""What W&B is to alert people of: a failure, and a significant regression. Plain values; the publisher sends them once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recorder.baselines import Baseline
from recorder.ledger import CheckpointRow, Ledger, ScoreRow, TaskRow
from recorder.statistics import Difference
from recorder.verdict import Verdict, checkpoint_verdict

RECENT_SECONDS = 86400.0  # who publishes an old backlog is not alerted of every failure in it
LISTED = 10


@dataclass(frozen=True)
class Alert:
    """``key`` is the same for the same news, so that it is told once."""

    key: str
    title: str
    text: str
    level: Literal["ERROR", "WARN"]


def alerts_of(
    model: str,
    ledger: Ledger,
    saves: Sequence[CheckpointRow],
    tasks: Sequence[TaskRow],
    scores: Sequence[ScoreRow],
    baselines: Sequence[Baseline],
) -> list[Alert]:
    """The failures of the last day, one alert a checkpoint, and the newest checkpoint's regression."""
    since = time.time() - RECENT_SECONDS
    found = []
    for save in saves:
        if save.model == model and not save.superseded and save.updated_at >= since:
            failed = [t for t in tasks if t[:3] == save[:3] and t.state == "failed"]
            if save.state == "failed" or (failed and save.state in ("evaluated", "recorded")):
                found.append(_failure(save, failed))
    worse = _regression(model, ledger, scores, baselines, since)
    return found if worse is None else [*found, worse]


def _failure(save: CheckpointRow, failed: Sequence[TaskRow]) -> Alert:
    names = [task.task for task in failed]
    lines = [f"{task.task}: {_first_line(task.error)}" for task in failed[:LISTED]]
    lines += [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    what = f"{len(names)} tasks failed" if save.state != "failed" else "the checkpoint failed"
    return Alert(
        f"failed:{save.model}:{save.iteration}:{save.fingerprint}:{','.join(names)}",
        f"{save.model} iteration {save.iteration}: {what}",
        "\n".join(lines) if lines else _first_line(save.error),
        "ERROR",
    )


def _first_line(error: str | None) -> str:
    return (error or "no reason is known").strip().splitlines()[0][:300]


def _regression(
    model: str, ledger: Ledger, scores: Sequence[ScoreRow], baselines: Sequence[Baseline], since: float
) -> Alert | None:
    verdict = checkpoint_verdict(scores, model, baselines=baselines, items=ledger.outcomes)
    if verdict is None or max(s.recorded_at for s in scores if s.model == model) < since:
        return None
    worse = [one for one in (verdict.previous, verdict.best) if one is not None and _is_worse(one)]
    if not worse:
        return None
    against = worse[0]
    lines = [] if against.overall is None or against.word != "worse" else [f"average: {_change(against.overall)}"]
    lines += [
        f"{task.metric}: {task.old:.4f} → {task.new:.4f} ({_change(task.difference)})"
        for task in against.regressions[:LISTED]
    ]
    return Alert(
        f"worse:{model}:{verdict.iteration}",
        f"{model} iteration {verdict.iteration} is worse than iteration {against.old_iteration}",
        "\n".join(lines),
        "WARN",
    )


def _is_worse(verdict: Verdict) -> bool:
    return verdict.word == "worse" or bool(verdict.regressions)


def _change(difference: Difference) -> str:
    return f"{difference.value:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
