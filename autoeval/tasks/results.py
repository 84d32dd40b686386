"""The results file of one model on one dataset, as OpenCompass's users read it, with what it leaves out.

    {"accuracy": 53.2, "accuracy_stderr": 1.4, "n": 1172, "mode": "ppl", "version": "1f3a...", "items": {...}}

Values are percentages where more is better, else as they are (bits per byte). ``items`` has every item's outcome by
its key, in 0..1 or the metric's unit. ``details`` (``--dump-eval-details``) has prompts, answers and references.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.datasets.names import class_name
from autoeval.openicl.postprocessors import build_postprocessor
from autoeval.openicl.styles import Style
from autoeval.tasks.icl import IclTask, evaluate_records
from autoeval.tasks.names import output_path
from autoeval.tasks.stored import prediction_files
from recorder.statistics import with_spread

# Where OpenCompass's name for a metric is another one.
_NAMES = {"acc": "accuracy", "acc_macro": "accuracy_macro"}
_MODES = {"PPLInferencer": "ppl", "LLInferencer": "ll", "loglikelihood": "ll", "GenInferencer": "gen"}
_MODES |= {"SCInferencer": "gen", "ChatInferencer": "gen", "PPLOnlyInferencer": "ppl"}
NOT_METRICS = frozenset({"n", "mode", "version", "chance", "items", "details", "made_from"})


def mode_of(dataset: Mapping[str, Any]) -> str:
    """``gen``, ``ppl``, ``ll`` or the inferencer's own name."""
    name = class_name(dataset["infer_cfg"]["inferencer"]["type"])
    return _MODES.get(name, name.removesuffix("Inferencer").lower())


def evaluate(
    task: IclTask,
    records: Sequence[Mapping[str, Any]],
    *,
    predictions: str,
    style: Style,
    details: bool = False,
    allow_code_execution: bool = False,
) -> dict[str, Any]:
    """The result of ``records``, one a sample; ``predictions`` is ``prediction_digest``."""
    scores, items = evaluate_records(task, records, style=style, allow_code_execution=allow_code_execution)
    result: dict[str, Any] = {}
    for score in scores:
        scale, name = (100.0 if score.higher_is_better else 1.0), _NAMES.get(score.metric, score.metric)
        result[name] = score.value * scale
        stderr = with_spread(score.value, score.stderr, score.n)
        if stderr is not None:
            result[f"{name}_stderr"] = stderr * scale
    outcomes: dict[str, dict[str, float]] = {}
    for item in items:
        outcomes.setdefault(_NAMES.get(item.metric, item.metric), {})[item.key] = item.value
    result |= {"n": len(records), "mode": mode_of({"infer_cfg": task.infer_cfg}), "version": task.version}
    chance = next((score.chance for score in scores if score.chance is not None), None)
    if chance is not None:
        result["chance"] = chance * 100
    result |= {"made_from": {"predictions": predictions, "version": task.version}, "items": outcomes}
    if details:
        result["details"] = _details(task, records, outcomes)
    return result


def prediction_digest(directory: Path, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    """A hash of the predictions' bytes."""
    digest = hashlib.sha256()
    for path in prediction_files(directory, model, dataset):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read_result(path: Path) -> dict[str, Any] | None:
    """What ``evaluate`` gave, or ``None`` when it is not there or torn."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def up_to_date(
    work_dir: Path, model: Mapping[str, Any], dataset: Mapping[str, Any], version: str, *, details: bool
) -> bool:
    """Whether the result on disk is of today's predictions and of the task as it is now."""
    result = read_result(output_path(work_dir / "results", model, dataset))
    if result is None or (details and "details" not in result):
        return False
    digest = prediction_digest(work_dir / "predictions", model, dataset)
    return result.get("made_from") == {"predictions": digest, "version": version}


def _details(
    task: IclTask, records: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """OpenCompass's ``details``: every item with its prompt, raw and cut answer, reference and outcomes."""
    generates = any("origin_prompt" in record for record in records)
    clean = build_postprocessor(task.eval_cfg.get("pred_postprocessor")) if generates else str
    details: dict[str, Any] = {"type": "GEN" if generates else "PPL"}
    for number, (sample, record) in enumerate(zip(task.samples, records, strict=True)):
        answer = record.get("prediction", "")
        details[str(number)] = {
            "prompt": record.get("origin_prompt") or _ranked_prompt(record),
            "origin_prediction": answer,
            "predictions": [clean(str(one)) for one in answer] if isinstance(answer, list) else clean(str(answer)),
            "references": record.get("gold"),
            "outcomes": {metric: values[sample.key] for metric, values in outcomes.items() if sample.key in values},
        }
    return details


def _ranked_prompt(record: Mapping[str, Any]) -> str:
    chosen = record.get(f"label: {record.get('prediction')}") or {}
    return str(chosen.get("prompt") or f"{chosen.get('testing input', '')}{chosen.get('continuation', '')}")
