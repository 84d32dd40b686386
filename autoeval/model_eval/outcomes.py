"""One task on one loaded model: scores with their errors, item outcomes, and what the same answers would get by chance.

**Chance** here is not guessing but dealing: the model's own answers, dealt to the items at random. It exists for every
metric (BLEU has no 1/k), and it sees through an answerer that always says the same: a model that calls every pair of
AFQMC different is right on 65 % of them, and no less when its answers are dealt anew.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoeval.openicl.inferencers import build_inferencer
from autoeval.tasks.icl import IclTask, evaluate_records, infer_in_chunks
from recorder.results import Score
from recorder.statistics import Difference, paired_difference, score_interval, with_spread

logger = logging.getLogger(__name__)

DEALS = 20  # random deals that chance is the mean of
CHUNK = 128  # items asked at once, and between two lines of progress


@dataclass(frozen=True)
class Outcome:
    """``scores``: the main metric first. ``items``: each item's value of the main metric by its key.

    ``chance`` is the main metric under random deals (module docstring), ``above_chance`` each item's own value against
    its mean value under the deals; both ``None`` below two items. ``records`` are the predictions, in OpenCompass's shape.
    """

    task: str
    version: str
    mode: str
    scores: tuple[Score, ...]
    items: Mapping[str, float]
    chance: float | None
    above_chance: Difference | None
    records: list[dict[str, Any]] = field(repr=False)
    seconds: float = 0.0

    @property
    def main(self) -> Score:
        return self.scores[0]

    @property
    def stderr(self) -> float | None:
        return with_spread(self.main.value, self.main.stderr, self.main.n)

    def details(self) -> dict[str, Any]:
        """For a script's answer: every figure beside the score."""
        interval = score_interval(self.main.value, self.main.stderr, self.main.n)
        return {
            "metric": self.main.metric,
            "score": _short(self.main.value),
            "stderr": _short(self.stderr),
            "n": self.main.n,
            "confidence_interval_95": None if interval is None else [_short(min(1.0, max(0.0, b))) for b in interval],
            "chance": _short(self.chance),
            "guessing": _short(self.main.chance),
            "metrics": {one.metric: {"value": _short(one.value), "stderr": _short(one.stderr)} for one in self.scores},
            "mode": self.mode,
            "task_version": self.version,
            "seconds": round(self.seconds, 1),
        }


def run_task(task: IclTask, model: Any, style: Any, *, deals: int = DEALS) -> Outcome:
    """Ask ``model`` all of ``task``, with progress in the log. Raises ``ValueError`` for a broken model."""
    started = time.monotonic()
    records = ask(task, model, style)
    scores, items = evaluate_records(task, records, style=style)
    own = {item.key: item.value for item in items if item.metric == scores[0].metric}
    chance, above = dealt(task, records, own, style, deals=deals)
    mode = {"rank": "ranked", "text": "generated"}.get(build_inferencer(task.infer_cfg["inferencer"]).kind, "other")
    seconds = time.monotonic() - started
    return Outcome(task.name, task.version, mode, scores, own, chance, above, records, seconds)


def ask(task: IclTask, model: Any, style: Any) -> list[dict[str, Any]]:
    """The records of all items, with progress in the log."""
    records: list[dict[str, Any]] = []
    for made in infer_in_chunks(task, model, task.samples, CHUNK, style=style):
        records += made
        logger.info("%s: %d of %d items", task.name, len(records), len(task.samples))
    return records


def dealt(
    task: IclTask, records: Sequence[Mapping[str, Any]], own: Mapping[str, float], style: Any, *, deals: int = DEALS
) -> tuple[float | None, Difference | None]:
    """The main metric when every item gets the answer to another one (a random cycle through all, ``deals`` of them,
    always the same), and the paired difference of the items' own values from their means under the deals."""
    count = len(records)
    if count < 2 or deals < 1:
        return None, None
    plain = dataclasses.replace(task, eval_cfg=_main_alone(task.eval_cfg))
    draw, values = random.Random(0), []
    under_deals: dict[str, list[float]] = {key: [] for key in own}
    for _ in range(deals):
        order = draw.sample(range(count), count)
        source = dict(zip(order, [*order[1:], order[0]], strict=True))
        scores, items = evaluate_records(plain, [records[source[place]] for place in range(count)], style=style)
        values.append(scores[0].value)
        for item in items:
            if item.metric == scores[0].metric:
                under_deals[item.key].append(item.value)
    means = {key: math.fsum(found) / deals for key, found in under_deals.items()}
    # What is left of rounding has a sign, and a test by signs would find it certain.
    means = {key: own[key] if math.isclose(mean, own[key], abs_tol=1e-12) else mean for key, mean in means.items()}
    return math.fsum(values) / deals, paired_difference(own, means)


def _main_alone(eval_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is computed beside the main metric: groups, further tokenizations, the bootstrap."""
    evaluator = {key: value for key, value in eval_cfg["evaluator"].items() if key != "also"}
    if evaluator.get("type") == "BleuEvaluator":
        evaluator["resamples"] = 0
    return {**{key: value for key, value in eval_cfg.items() if key != "group_column"}, "evaluator": evaluator}


def _short(value: float | None) -> float | None:
    """Six significant digits: more are noise, and unreadable."""
    return None if value is None else float(f"{value:.6g}")
