"""Items that a model answered right before and answers wrong now, from the ledger: forgetting, item by item."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from autoeval.diagnosis.finding import Finding, Level
from recorder.ledger import Ledger, LedgerError, ScoreRow
from recorder.statistics import Difference, holm, paired_difference

NET_HIGH, NET_MEDIUM = 0.05, 0.02  # net share of the items that were lost
SURE_HIGH, SURE_MEDIUM = 0.01, 0.05  # p-values, corrected for the number of tasks


def forgotten_items(ledger_path: Path, model: str | None = None) -> list[Finding]:
    """Per task, the newest checkpoint against the best one before it, on the same items.

    The test is McNemar's exact one (flipped signs where outcomes are not 0 and 1), corrected by Holm for the tasks.
    The best checkpoint is chosen after looking, so it is a little lucky; the net share that is asked for stands
    against that. ``model`` may stay ``None`` when the ledger knows one only. Raises ``ValueError`` naming the file.
    """
    if not ledger_path.is_file():
        raise ValueError(f"{ledger_path}: there is no such ledger")
    try:
        ledger = Ledger(ledger_path, repair=False)
    except LedgerError as error:
        raise ValueError(str(error)) from error
    try:
        return _compare(ledger, _only_model(ledger, ledger_path, model))
    finally:
        ledger.close()


def _only_model(ledger: Ledger, path: Path, model: str | None) -> str:
    models = sorted({row.model for row in ledger.scores()})
    if model is None and len(models) == 1:
        return models[0]
    if model not in models:
        asked = "--model is needed" if model is None else f"the model {model!r} has no scores"
        raise ValueError(f"{path}: {asked}; the ledger knows: {', '.join(models) or 'none'}")
    return model


def _compare(ledger: Ledger, model: str) -> list[Finding]:
    headline: dict[str, list[ScoreRow]] = defaultdict(list)
    for row in ledger.scores():
        if row.model == model and row.position == 0:
            headline[row.task].append(row)
    items: dict[int, dict[tuple[str, str], dict[str, float]]] = {}
    found: list[tuple[str, int, int, Difference]] = []
    for task, rows in sorted(headline.items()):
        rows.sort(key=lambda row: row.iteration)
        newest, earlier = rows[-1], rows[:-1]
        if not earlier:
            continue
        sign = 1.0 if newest.higher_is_better else -1.0
        best = max(earlier, key=lambda row: sign * row.value)
        new, old = (_items(ledger, model, row.iteration, items).get((task, row.metric), {}) for row in (newest, best))
        if sign < 0:
            new, old = ({key: -value for key, value in one.items()} for one in (new, old))
        difference = paired_difference(new, old)
        if difference is not None:
            found.append((task, best.iteration, newest.iteration, difference))
    corrected = holm([difference.p_value for *_, difference in found])
    return [
        finding
        for (task, best_at, newest_at, difference), p_value in zip(found, corrected, strict=True)
        if (finding := _finding(task, best_at, newest_at, difference, p_value)) is not None
    ]


def _items(
    ledger: Ledger, model: str, iteration: int, known: dict[int, dict[tuple[str, str], dict[str, float]]]
) -> dict[tuple[str, str], dict[str, float]]:
    if iteration not in known:
        known[iteration] = defaultdict(dict)
        for item in ledger.items(model, iteration):
            known[iteration][item.task, item.metric][item.key] = item.value
    return known[iteration]


def _finding(task: str, best_at: int, newest_at: int, difference: Difference, p_value: float) -> Finding | None:
    net = (difference.lost - difference.gained) / difference.n
    level: Level
    if net >= NET_HIGH and p_value < SURE_HIGH:
        level = "High"
    elif net >= NET_MEDIUM and p_value < SURE_MEDIUM:
        level = "Medium"
    else:
        return None
    values: dict[str, float | str] = {
        "task": task,
        "lost": difference.lost,
        "gained": difference.gained,
        "items": difference.n,
        "net_percent": 100 * net,
        "p_value": p_value,
    }
    return Finding("item_flips", level, best_at, newest_at, values)
