"""OpenICL tasks: a dataset with its prompt, inferencer and metrics, evaluated on one model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoeval.datasets.loaders import load_splits, test_rows, train_rows
from autoeval.datasets.rows import DatasetError, Row, Source, content_hash, in_range, subset
from autoeval.models.requests import LanguageModel
from autoeval.openicl.asking import Asked, records_of
from autoeval.openicl.evaluation import evaluate, reference_of
from autoeval.openicl.evaluators import build_evaluator, check_code_execution
from autoeval.openicl.inferencers import build_inferencer
from autoeval.openicl.postprocessors import build_postprocessor
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.retrievers import build_retriever
from autoeval.openicl.sample import Prompting, Reader, Sample
from autoeval.openicl.styles import Style
from autoeval.tasks.clusters import clusters_of, stderr_with
from autoeval.tasks.configs import DatasetConfig, find_config, loader_options, read_configs
from recorder.results import Item, Score

logger = logging.getLogger(__name__)

# Part of every task's version: raise it when a change in this code changes scores.
HARNESS_VERSION = "2"
USUAL_OUT_LEN = 64  # tokens, where neither task nor model says
GENERATED_WEIGHT = 10  # tokens read in the time of one generated


@dataclass(frozen=True)
class IclTask:
    """``name`` is the dataset's abbr; ``version`` hashes all that can change its score (and so does the data)."""

    name: str
    version: str
    samples: tuple[Sample, ...]
    prompting: Prompting
    infer_cfg: Mapping[str, Any]
    eval_cfg: Mapping[str, Any]
    allow_code_execution: bool = False


@dataclass(frozen=True)
class IclOutcome:
    """``predictions`` in OpenCompass's JSON shape; ``scores`` in 0..1; ``items`` per metric."""

    predictions: dict[str, Any]
    scores: tuple[Score, ...]
    items: tuple[Item, ...]


def load_icl_tasks(
    names: Sequence[str],
    *,
    data_dir: Path,
    config_dir: Path | None = None,
    limit: int | None = None,
    allow_code_execution: bool = False,
) -> list[IclTask]:
    """The tasks that ``names`` stand for: names of configurations, or paths ending in .py.

    ``limit`` takes so many items of each, always the same ones (``autoeval.datasets.rows.subset``). Raises
    ``ValueError`` (``DatasetError`` for data) naming the file and what is wrong; also for a task whose scoring runs
    what the model wrote, unless ``allow_code_execution``.
    """
    configs = [config for name in names for config in read_configs(find_config(name, config_dir))]
    for config in configs:
        check_code_execution(
            config.options["eval_cfg"], config.abbr, allow_code_execution, "icl.allow_code_execution: true"
        )
    tasks = [_load(config, data_dir, limit) for config in configs]
    return [dataclasses.replace(task, allow_code_execution=allow_code_execution) for task in tasks]


def load_icl_task(config: DatasetConfig, *, data_dir: Path, limit: int | None = None) -> IclTask:
    """One task of a configuration that was read already; otherwise as ``load_icl_tasks``."""
    return _load(config, data_dir, limit)


def size_of(task: IclTask) -> float:
    """Tokens that the task may cost, roughly: a quarter of the characters, for each label that is ranked; a token that is
    generated takes as long as many that are read."""
    inferencer = build_inferencer(task.infer_cfg["inferencer"])
    if inferencer.kind == "rank":
        return sum(_characters(sample) * len(task.prompting.labels(sample.row)) for sample in task.samples) / 4
    grown = int(task.infer_cfg["inferencer"].get("max_out_len") or USUAL_OUT_LEN) * GENERATED_WEIGHT
    return sum(_characters(sample) / 4 + grown for sample in task.samples)


def rows_of(task: IclTask) -> str:
    """The same for tasks about the same rows."""
    return content_hash(sample.row for sample in task.samples)


def _characters(sample: Sample) -> int:
    return sum(len(str(value)) for row in (sample.row, *sample.examples) for value in row.columns.values())


def run_icl_task(task: IclTask, model: LanguageModel, *, style: Style | None = None) -> IclOutcome:
    """Evaluate ``model``. Raises ``ValueError`` for a log-probability that is no number."""
    return icl_outcome(task, infer_samples(task, model, task.samples, style=style), style=style)


def ask_icl_task(task: IclTask, model: LanguageModel) -> Asked:
    """What the task asks ``model``: it depends on tokenizer and window only. Raises ``ValueError`` for what cannot be
    asked it."""
    return build_inferencer(task.infer_cfg["inferencer"]).ask(model, task.samples, task.prompting)


def icl_outcome(task: IclTask, records: Sequence[Mapping[str, Any]], *, style: Style | None = None) -> IclOutcome:
    """From the records of all of the task's samples. Raises ``ValueError`` when they cannot be scored."""
    scores, items = evaluate_records(task, records, style=style, allow_code_execution=task.allow_code_execution)
    return IclOutcome({str(number): record for number, record in enumerate(records)}, scores, items)


def infer_samples(
    task: IclTask, model: LanguageModel, samples: Sequence[Sample], *, style: Style | None = None
) -> list[dict[str, Any]]:
    """What the predictions file keeps of ``samples`` (some or all of the task's), in their order.

    ``style`` is how the model wants turns (``autoeval.openicl.styles.build_style`` of its ``meta_template``); without
    one they lie one under the other. A model that has ``generate_messages`` is asked with chat messages.
    """
    chunks = infer_in_chunks(task, model, samples, max(1, len(samples)), style=style)
    return [record for records in chunks for record in records]


def infer_in_chunks(
    task: IclTask, model: LanguageModel, samples: Sequence[Sample], size: int, *, style: Style | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The records of ``samples``, ``size`` at a time, as ``infer_samples`` makes them.

    The next chunk's prompts are made and tokenized in a thread while the model answers a chunk: tokenizers and devices
    need no Python for most of their time. What cannot be asked is an error when its turn has come.
    """
    prompting = task.prompting if style is None else dataclasses.replace(task.prompting, style=style)
    inferencer = build_inferencer(task.infer_cfg["inferencer"])
    chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
        coming = pool.submit(inferencer.ask, model, chunks[0], prompting) if chunks else None
        for following in [*chunks[1:], None]:
            if coming is None:
                return
            asked = coming.result()
            coming = None if following is None else pool.submit(inferencer.ask, model, following, prompting)
            yield records_of(asked, model)


def evaluate_records(
    task: IclTask,
    records: Sequence[Mapping[str, Any]],
    *,
    style: Style | None = None,
    allow_code_execution: bool = False,
) -> tuple[tuple[Score, ...], tuple[Item, ...]]:
    """Scores and items from records, one a sample, as ``infer_samples`` made them or a predictions file has them.

    ``style`` is needed for ``pred_role`` only. Raises ``ValueError`` when scoring would run code that a model wrote and
    that is not allowed.
    """
    kind = build_inferencer(task.infer_cfg["inferencer"]).kind
    metrics = evaluate(
        kind,
        records,
        task.samples,
        task.prompting,
        task.eval_cfg,
        style=style,
        allow_code_execution=allow_code_execution,
    )
    chance = _chance(records) if kind == "rank" else None
    clusters = clusters_of(task.samples)
    scores = tuple(
        Score(
            metric.name,
            metric.value,
            stderr_with(clusters, metric.value, metric.stderr, metric.values),
            len(metric.values),
            higher_is_better=metric.higher_is_better,
            chance=chance if metric.name.startswith("acc") else None,
        )
        for metric in metrics
    )
    items = tuple(
        Item(sample.key, metric.name, value, cluster)
        for metric in metrics
        for sample, value, cluster in zip(task.samples, metric.values, clusters, strict=True)
    )
    return scores, items


def _chance(records: Sequence[Mapping[str, Any]]) -> float | None:
    """What guessing would give: the mean of 1 / choices. ``None`` where there is no choice."""
    choices = [sum(str(key).startswith("label: ") for key in record) for record in records]
    if min(choices) < 2:
        return None
    return sum(1 / count for count in choices) / len(choices)


def _load(config: DatasetConfig, data_dir: Path, limit: int | None) -> IclTask:
    options = config.options
    source = Source(Path(data_dir), config.file)
    splits = load_splits(options["type"], source, loader_options(options))
    try:
        prompting = _prompting(options["reader_cfg"], options["infer_cfg"])
        reader = prompting.reader
        train = [row for _, row in in_range(train_rows(splits, reader.train_split), reader.train_range)]
        rows = in_range(_test_rows(config, splits, reader), reader.test_range)
        chosen = [rows[place] for place, _ in subset([row for _, row in rows], limit)]
        if not chosen:
            raise ValueError(f"test_range {reader.test_range!r} leaves no items")
        examples = prompting.retriever.retrieve(chosen, train, prompting)
        samples = tuple(
            Sample(f"{index}-{row.digest[:8]}", row, tuple(shots))
            for (index, row), shots in zip(chosen, examples, strict=True)
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


def _hash(identity: Mapping[str, Any]) -> str:
    # Not sorted: the order of labels decides ties, so it is part of the identity. Keys of a dict keep their order.
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False, default=str).encode()).hexdigest()[:12]


def _prompting(reader_cfg: Mapping[str, Any], infer_cfg: Mapping[str, Any]) -> Prompting:
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
        continuation=inferencer.continuation,
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


def _test_rows(config: DatasetConfig, splits: dict[str, list[Row]], reader: Reader) -> Sequence[Row]:
    try:
        rows = test_rows(splits, reader.test_split)
    except ValueError as error:
        raise config.error(error) from error
    if not rows:
        raise DatasetError(f"{config.file}: dataset '{config.abbr}': {config.options['path']} has no rows")
    return rows


def _check(samples: Sequence[Sample], prompting: Prompting, options: Mapping[str, Any]) -> None:
    """What can be wrong with configuration or data shows before a model is loaded."""
    inferencer = build_inferencer(options["infer_cfg"]["inferencer"])
    evaluator = build_evaluator(options["eval_cfg"].get("evaluator", {}))
    for key in ("pred_postprocessor", "dataset_postprocessor"):
        build_postprocessor(options["eval_cfg"].get(key))
    if any(sample.examples for sample in samples) and not prompting.template.ice_token:
        raise ValueError("the retriever gives in-context examples, but the template has no ice_token to put them at")
    needs_reference = inferencer.kind == "text" and getattr(evaluator, "wants", "") != "rows"
    for sample in samples:
        for column in (*prompting.reader.input_columns, *filter(None, [options["eval_cfg"].get("group_column")])):
            sample.row[column]
        if inferencer.kind == "rank":
            prompting.golds(sample.row)
        elif needs_reference and "dialogue" not in sample.row.columns:
            reference_of(sample, prompting)
        prompting.ice(sample.examples)
