"""OpenICL tasks: a dataset with its prompt, inferencer and metrics, evaluated on one model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.datasets.loaders import load_splits
from autoeval.datasets.rows import DatasetError, Row, Source, content_hash, subset
from autoeval.models.requests import Cost, LanguageModel
from autoeval.openicl.evaluators import AccEvaluator, Metric, Reference, build_evaluator
from autoeval.openicl.inferencers import LLInferencer, Prediction, build_inferencer
from autoeval.openicl.postprocessors import build_postprocessor
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.retrievers import build_retriever
from autoeval.openicl.sample import Prompting, Reader, Sample
from autoeval.tasks.configs import DatasetConfig, find_config, read_configs
from recorder.results import Item, Score

logger = logging.getLogger(__name__)

# Part of every task's version: raise it when a change in this code changes scores.
HARNESS_VERSION = "1"


@dataclass(frozen=True)
class IclTask:
    """``name`` is the dataset's abbr; ``version`` hashes all that can change its score (and so does the data)."""

    name: str
    version: str
    samples: tuple[Sample, ...]
    prompting: Prompting
    infer_cfg: Mapping[str, Any]
    eval_cfg: Mapping[str, Any]


@dataclass(frozen=True)
class IclOutcome:
    """``predictions`` in OpenCompass's JSON shape; ``scores`` in 0..1; ``items`` per metric; ``cost`` of this task."""

    predictions: dict[str, Any]
    scores: tuple[Score, ...]
    items: tuple[Item, ...]
    cost: dict[str, float]


def load_icl_tasks(
    names: Sequence[str], *, data_dir: Path, config_dir: Path | None = None, limit: int | None = None
) -> list[IclTask]:
    """The tasks that ``names`` stand for: names of configurations, or paths ending in .py.

    ``limit`` takes so many items of each, always the same ones (``autoeval.datasets.rows.subset``). Raises
    ``ValueError`` (``DatasetError`` for data) naming the file and what is wrong.
    """
    configs = [config for name in names for config in read_configs(find_config(name, config_dir))]
    return [_load(config, data_dir, limit) for config in configs]


def load_icl_task(config: DatasetConfig, *, data_dir: Path, limit: int | None = None) -> IclTask:
    """One task of a configuration that was read already; otherwise as ``load_icl_tasks``."""
    return _load(config, data_dir, limit)


def run_icl_task(task: IclTask, model: LanguageModel) -> IclOutcome:
    """Evaluate ``model``. Raises ``ValueError`` for a log-probability that is no number."""
    before, started = _counters(model.cost), time.perf_counter()
    records = infer_samples(task, model, task.samples)
    scores, items = evaluate_records(task, records)
    after = _counters(model.cost)
    cost = {name: value - before.get(name, 0) for name, value in after.items()}
    cost["task_seconds"] = time.perf_counter() - started
    return IclOutcome({str(number): record for number, record in enumerate(records)}, scores, items, cost)


def infer_samples(task: IclTask, model: LanguageModel, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What the predictions file keeps of ``samples`` (some or all of the task's), in their order."""
    inferencer = build_inferencer(task.infer_cfg["inferencer"])
    return [prediction.record for prediction in inferencer.infer(model, samples, task.prompting)]


def evaluate_records(task: IclTask, records: Sequence[Mapping[str, Any]]) -> tuple[tuple[Score, ...], tuple[Item, ...]]:
    """Scores and items from records, one a sample, as ``infer_samples`` made them or a predictions file has them."""
    ranks = build_inferencer(task.infer_cfg["inferencer"]).ranks
    predictions = [_prediction(record, ranks=ranks) for record in records]
    metrics = _evaluate(task, predictions, ranks=ranks)
    chance = None
    if ranks:
        chance = sum(1 / prediction.choices for prediction in predictions if prediction.choices) / len(predictions)
    scores = tuple(
        Score(
            metric.name,
            metric.value,
            metric.stderr,
            len(metric.values),
            higher_is_better=metric.higher_is_better,
            chance=chance,
        )
        for metric in metrics
    )
    items = tuple(
        Item(sample.key, metric.name, value)
        for metric in metrics
        for sample, value in zip(task.samples, metric.values, strict=True)
    )
    return scores, items


def _prediction(record: Mapping[str, Any], *, ranks: bool) -> Prediction:
    if not ranks:
        return Prediction(record["prediction"], dict(record))
    choices = sum(str(key).startswith("label: ") for key in record)
    return Prediction(record["prediction"], dict(record), record.get("prediction (normalized)"), choices)


def _load(config: DatasetConfig, data_dir: Path, limit: int | None) -> IclTask:
    options = config.options
    source = Source(Path(data_dir), config.file)
    extra = {key: value for key, value in options.items() if key not in _CONFIG_KEYS}
    splits = load_splits(options["type"], source, extra)
    try:
        prompting = _prompting(options["reader_cfg"], options["infer_cfg"])
        train = splits.get(prompting.reader.train_split, [])
        rows = _test_rows(config, splits, prompting.reader)
        samples = tuple(
            Sample(f"{index}-{row.digest[:8]}", row, tuple(prompting.retriever.retrieve(row, train)))
            for index, row in subset(rows, limit)
        )
        _check(samples, prompting, options)
    except DatasetError:
        raise
    except ValueError as error:
        raise config.error(error) from error
    data = (
        content_hash([sample.row for sample in samples]),
        content_hash(example for sample in samples for example in sample.examples),
    )
    identity = {
        "harness": HARNESS_VERSION,
        **{key: options[key] for key in ("reader_cfg", "infer_cfg", "eval_cfg")},
        "data": data,
        "limit": limit if limit is not None and limit < len(rows) else None,
    }
    return IclTask(config.abbr, _hash(identity), samples, prompting, options["infer_cfg"], options["eval_cfg"])


_CONFIG_KEYS = frozenset({"abbr", "type", "reader_cfg", "infer_cfg", "eval_cfg"})


def _hash(identity: Mapping[str, Any]) -> str:
    # Not sorted: the order of labels decides ties, so it is part of the identity. Keys of a dict keep their order.
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False, default=str).encode()).hexdigest()[:12]


def _prompting(reader_cfg: Mapping[str, Any], infer_cfg: Mapping[str, Any]) -> Prompting:
    if "output_column" not in reader_cfg:
        raise ValueError("reader_cfg lacks output_column")
    for key in ("retriever", "inferencer"):
        if not isinstance(infer_cfg.get(key), Mapping):
            raise ValueError(f"infer_cfg lacks {key}=dict(type=...)")
    columns = reader_cfg.get("input_columns", ())
    reader = Reader(**{**reader_cfg, "input_columns": (columns,) if isinstance(columns, str) else tuple(columns)})
    inferencer = build_inferencer(infer_cfg["inferencer"])
    return Prompting(
        reader=reader,
        retriever=build_retriever(infer_cfg["retriever"]),
        prompt_template=_template(infer_cfg.get("prompt_template")),
        ice_template=_template(infer_cfg.get("ice_template")),
        continuation=inferencer.continuation if isinstance(inferencer, LLInferencer) else None,
    )


def _template(options: Any) -> PromptTemplate | None:
    if options is None:
        return None
    if not isinstance(options, Mapping) or "template" not in options:
        raise ValueError("a template is dict(type='PromptTemplate', template=...)")
    unknown = set(options) - {"type", "template", "ice_token", "sep_token"}
    if unknown:
        raise ValueError(f"PromptTemplate has an unknown key '{min(unknown)}'")
    return PromptTemplate(options["template"], options.get("ice_token"), options.get("sep_token"))


def _test_rows(config: DatasetConfig, splits: Mapping[str, Sequence[Row]], reader: Reader) -> Sequence[Row]:
    if reader.test_split not in splits:
        raise config.error(f"there is no split '{reader.test_split}' (there are: {', '.join(splits)})")
    rows = splits[reader.test_split]
    if not rows:
        raise DatasetError(f"{config.file}: dataset '{config.abbr}': {config.options['path']} has no rows")
    return rows


def _check(samples: Sequence[Sample], prompting: Prompting, options: Mapping[str, Any]) -> None:
    """What can be wrong with configuration or data shows before a model is loaded."""
    inferencer = build_inferencer(options["infer_cfg"]["inferencer"])
    build_evaluator(options["eval_cfg"].get("evaluator", {}))
    for key in ("pred_postprocessor", "dataset_postprocessor"):
        build_postprocessor(options["eval_cfg"].get(key))
    if any(sample.examples for sample in samples) and not prompting.template.ice_token:
        raise ValueError("the retriever gives in-context examples, but the template has no ice_token to put them at")
    for sample in samples:
        for column in prompting.reader.input_columns:
            sample.row[column]
        if inferencer.ranks:
            prompting.gold(sample.row)
        else:
            _references(sample, prompting)
        prompting.ice(sample.examples, _answer_of(prompting))


def _answer_of(prompting: Prompting) -> Any:
    continuation = prompting.continuation
    if continuation is None:
        return None
    return lambda row: continuation.format(prompting.columns(row, prompting.gold(row)), label=prompting.gold(row))


def _references(sample: Sample, prompting: Prompting) -> Reference:
    """The accepted answers of a generated item."""
    gold = sample.row[prompting.reader.output_column]
    if gold is None or gold == []:
        raise DatasetError(f"{sample.row.where}: {prompting.reader.output_column!r} has no answer")
    return [str(one) for one in gold] if isinstance(gold, list) else str(gold)


def _evaluate(task: IclTask, predictions: Sequence[Prediction], *, ranks: bool) -> list[Metric]:
    evaluator = build_evaluator(task.eval_cfg.get("evaluator", {}))
    texts = [prediction.text for prediction in predictions]
    if ranks:
        golds = [task.prompting.gold(sample.row) for sample in task.samples]
        metrics = list(evaluator.score(texts, golds))
        normalized = [prediction.normalized for prediction in predictions if prediction.normalized is not None]
        if normalized:
            acc_norm = AccEvaluator().score(normalized, golds)[0]
            metrics.append(dataclasses.replace(acc_norm, name="acc_norm"))
        return metrics
    clean = build_postprocessor(task.eval_cfg.get("pred_postprocessor"))
    clean_gold = build_postprocessor(task.eval_cfg.get("dataset_postprocessor"))
    references: list[Reference] = []
    for sample in task.samples:
        gold = _references(sample, task.prompting)
        references.append(clean_gold(gold) if isinstance(gold, str) else [clean_gold(one) for one in gold])
    return list(evaluator.score([clean(text) for text in texts], references))


def _counters(cost: Cost) -> dict[str, float]:
    plain = {name: value for name, value in dataclasses.asdict(cost).items() if name != "extra"}
    return {**plain, **cost.extra}
