"""``eval/evaluate_model_from_five_dimensions.py``: five abilities of one model, each with its error, and a diagnosis.

The tasks are those of ``config/datasets/five_dimensions``, the same that the daemon and run.py take.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoeval.eval_output import Answer
from autoeval.model_eval.arguments import Settings, read_dimensions, read_json, read_settings, stay_offline
from autoeval.model_eval.given_model import GivenModel, understand
from autoeval.model_eval.outcomes import Outcome, run_task
from autoeval.model_eval.weaknesses import Reference, diagnose
from autoeval.tasks.configs import DatasetConfig, find_config, read_configs
from autoeval.tasks.icl import IclTask, load_icl_task
from recorder.files import write_json

SAVED = "five_dimensions.json"
FORMAT = "autoeval-five-dimensions/1"
# Ranked by default; a model that only generates writes the letter of its choice.
_GENERATED_INSTEAD = frozenset({"inference_ability", "innovation_capacity"})

# Which texts BLEU counts, said in the answer: there is no one way for Chinese.
_BLEU = {
    "reading_comprehension": "corpus BLEU over Chinese characters (sacrebleu zh); bleu_jieba: over jieba's words",
    "chinese_language_skill": "corpus BLEU over Chinese characters (sacrebleu zh); bleu_jieba: over jieba's words",
    "command_compliance": "corpus BLEU over words (sacrebleu 13a)",
}


def evaluate(options: argparse.Namespace) -> Answer:
    """The answer's message and content. Raises ``ValueError`` and ``OSError`` naming what is wrong, data before models."""
    stay_offline()
    dimensions = read_dimensions(options.evaluation_dimensions)
    settings = read_settings(options.options)
    model = understand(options.model_name_or_path, settings.wishes)
    tasks = {name: load_task(name, model, settings) for name in dimensions}
    references, reference_model = _reference(settings, tasks)
    outcomes = _outcomes(model, tasks)
    if reference_model is not None:
        references = {name: _as_reference(one) for name, one in _outcomes(reference_model, tasks).items()}
    content = {
        "evaluation_results": {name: _rounded(outcome.main.value) for name, outcome in outcomes.items()},
        "diagnosis": diagnose(outcomes, references, settings.lang),
        "details": {name: _details(outcome) for name, outcome in outcomes.items()},
        "model": _about(model),
    }
    if settings.output_path is not None:
        _save(settings.output_path, content, outcomes)
    return "Success", content


def load_task(name: str, model: GivenModel, settings: Settings) -> IclTask:
    """The task of one dimension as this model can answer it. Raises ``DatasetError`` for data that is not there."""
    chosen = name
    if model.generates_only and name in _GENERATED_INSTEAD:
        chosen = f"{name}_gen"
        if settings.shots:
            raise ValueError("shots: a model that only generates (a chat server) is asked zero-shot")
    elif name == "innovation_capacity" and settings.shots:
        chosen = f"{name}_few_shot"
    (config,) = read_configs(find_config(chosen, None))
    if name in settings.data_paths:
        path = Path(settings.data_paths[name])
        if not path.exists():
            raise FileNotFoundError(f"additional_parameters: data_dir: {name}: {path}: no such file or directory")
        config = DatasetConfig(config.file, {**config.options, "path": str(path.absolute())})
    return load_icl_task(config, data_dir=settings.data_dir.absolute(), limit=settings.limit)


def _outcomes(model: GivenModel, tasks: Mapping[str, IclTask]) -> dict[str, Outcome]:
    loaded = model.load()
    try:
        style = model.style(loaded)
        return {name: run_task(task, loaded, style) for name, task in tasks.items()}
    finally:
        loaded.unload()


def _reference(
    settings: Settings, tasks: Mapping[str, IclTask]
) -> tuple[dict[str, Reference] | None, GivenModel | None]:
    """What an earlier answer says, or the model to be asked; checked before anything is computed."""
    if settings.reference is None:
        return None, None
    path = Path(settings.reference)
    saved = path / SAVED if (path / SAVED).is_file() else path
    if saved.is_file():
        return read_reference(saved), None
    wishes = dataclasses.replace(settings.wishes, peft_path=None, served_name=None, iteration=None)
    model = understand(settings.reference, wishes)
    if model.generates_only and any(name in _GENERATED_INSTEAD for name in tasks):
        raise ValueError(f"reference: {settings.reference}: only generates, so it cannot be asked the same way")
    return None, model


def read_reference(path: Path) -> dict[str, Reference]:
    """An earlier answer: what was printed, or (with items, so that pairs can be compared) what ``output_path`` has."""
    content = read_json(path.read_text(encoding="utf-8"), f"reference: {path}", "an answer of this script")
    details = content.get("details") if isinstance(content, dict) else None
    if not isinstance(details, dict):
        raise ValueError(f"reference: {path}: there is no 'details' in it: expected an answer of this script")
    items = content.get("items") or {}
    try:
        return {
            name: Reference(
                float(entry["score"]),
                None if entry["stderr"] is None else float(entry["stderr"]),
                int(entry["n"]),
                str(entry["task_version"]),
                {str(key): float(value) for key, value in (items.get(name) or {}).items()},
            )
            for name, entry in details.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"reference: {path}: details or items are not those of this script: {error!r}") from error


def _as_reference(outcome: Outcome) -> Reference:
    return Reference(outcome.main.value, outcome.stderr, outcome.main.n, outcome.version, outcome.items)


def _details(outcome: Outcome) -> dict[str, Any]:
    said = {"bleu": _BLEU[outcome.task]} if outcome.task in _BLEU else {}
    return {**outcome.details(), **said}


def _about(model: GivenModel) -> dict[str, Any]:
    """What was evaluated and how; a server's key is not in it."""
    style = "chat template" if model.config["type"] == "HuggingFacewithChatTemplate" else "plain text"
    return {
        "name": model.name,
        "source": model.source,
        "path": model.config["path"],
        "prompts": "chat messages" if model.generates_only else style,
        "max_seq_len": model.config.get("max_seq_len"),
    }


def _save(directory: Path, content: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    """The answer with every item's value, and the predictions, each file whole."""
    for name, outcome in outcomes.items():
        records = {str(number): record for number, record in enumerate(outcome.records)}
        write_json(directory / "predictions" / f"{name}.json", records)
    items = {name: dict(outcome.items) for name, outcome in outcomes.items()}
    write_json(directory / SAVED, {"format": FORMAT, **content, "items": items})


def _rounded(value: float) -> float:
    return round(value, 4)
