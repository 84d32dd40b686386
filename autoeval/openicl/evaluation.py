"""From records to metrics: what an evaluator is given, and what comes with it.

What a ranked item's record has besides its prediction gives more metrics (``acc_norm``, ``acc_norm_token``, ``bpb``);
texts are post-processed; several texts an item are put to the vote, or each is scored and the item has their mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoeval.datasets.rows import DatasetError
from autoeval.openicl.choice_metrics import AccEvaluator
from autoeval.openicl.evaluators import build_evaluator
from autoeval.openicl.metric import Metric, Reference, mean_metric
from autoeval.openicl.postprocessors import build_postprocessor
from autoeval.openicl.sample import Prompting, Sample
from autoeval.openicl.styles import Style

Record = Mapping[str, Any]

# The record's key, and the metric that it gives beside ``acc``.
_MORE_ACCURACIES = {"prediction (normalized)": "acc_norm", "prediction (by tokens)": "acc_norm_token"}


def evaluate(
    kind: str,
    records: Sequence[Record],
    samples: Sequence[Sample],
    prompting: Prompting,
    eval_cfg: Mapping[str, Any],
    *,
    style: Style | None = None,
    allow_code_execution: bool = False,
) -> list[Metric]:
    """The metrics of ``records``, the main one first; one record a sample, made by an inferencer of ``kind``."""
    evaluator = build_evaluator(eval_cfg.get("evaluator", {}), allow_code_execution=allow_code_execution)
    if kind == "corpus":
        metrics = evaluator.score(records)
    elif kind == "rank":
        metrics = _ranked(evaluator, records, samples, prompting)
    elif kind == "probability":
        golds = [int(record["gold"]) for record in records]
        if getattr(evaluator, "wants", "") == "probabilities":
            metrics = evaluator.score([record["prediction"] for record in records], golds)
        else:
            metrics = evaluator.score([str(record["pred_label"]) for record in records], [str(one) for one in golds])
    else:
        metrics = _texts(evaluator, records, samples, prompting, eval_cfg, style)
    return [*metrics, *_macro(metrics, samples, eval_cfg.get("group_column"))]


def _ranked(evaluator: Any, records: Sequence[Record], samples: Sequence[Sample], prompting: Prompting) -> list[Metric]:
    if getattr(evaluator, "wants", "") == "records":
        return list(evaluator.score(records, [prompting.golds(sample.row) for sample in samples]))
    golds: list[Reference] = [_reference(prompting.golds(sample.row)) for sample in samples]
    metrics = list(evaluator.score([str(record["prediction"]) for record in records], golds))
    for key, name in _MORE_ACCURACIES.items():
        labels = [record[key] for record in records if key in record]
        if len(labels) == len(records):
            metrics.append(dataclasses.replace(AccEvaluator().score(labels, golds)[0], name=name))
    bits = [_gold_bits(record, golds[number]) for number, record in enumerate(records)]
    if all(one is not None for one in bits):
        mean = mean_metric("bpb", [float(one) for one in bits if one is not None])
        metrics.append(dataclasses.replace(mean, higher_is_better=False))
    return metrics


def _gold_bits(record: Record, gold: Reference) -> float | None:
    """Bits per byte of the right continuation; none for rankings of whole prompts."""
    chosen = record.get(f"label: {gold}") if isinstance(gold, str) else None
    return chosen["BPB"] if chosen and "loglikelihood" in chosen else None


def _reference(golds: Sequence[str]) -> Reference:
    return golds[0] if len(golds) == 1 else list(golds)


def _texts(
    evaluator: Any,
    records: Sequence[Record],
    samples: Sequence[Sample],
    prompting: Prompting,
    eval_cfg: Mapping[str, Any],
    style: Style | None,
) -> list[Metric]:
    clean = build_postprocessor(eval_cfg.get("pred_postprocessor"))
    role = eval_cfg.get("pred_role")

    def cleaned(text: str) -> str:
        return clean(style.cut(text, role) if role and style is not None else text)

    texts = [
        [cleaned(one) for one in record["prediction"]]
        if isinstance(record["prediction"], list)
        else cleaned(record["prediction"])
        for record in records
    ]
    wants = getattr(evaluator, "wants", "")
    if wants == "rows":
        lists = [text if isinstance(text, list) else [text] for text in texts]
        return list(evaluator.score(lists, [sample.row for sample in samples]))
    to_reference = build_postprocessor(eval_cfg.get("dataset_postprocessor"))
    references: list[Any] = []
    for sample, record in zip(samples, records, strict=True):
        if "rounds" in record:  # a dialogue: its answers are those of the rounds, not of the row
            gold = record["gold"]
            references.append([*map(to_reference, gold)] if isinstance(gold, list) else to_reference(gold))
        else:
            references.append(reference_of(sample, prompting, to_reference))
    if not any(isinstance(text, list) for text in texts):
        return list(evaluator.score(texts, references))
    if "sc_size" in eval_cfg:
        return list(evaluator.score([majority(text) for text in texts], references))
    return _mean_of_several(evaluator, texts, references, [("rounds" in record) for record in records])


def _mean_of_several(
    evaluator: Any, texts: Sequence[Any], references: Sequence[Any], rounds: Sequence[bool]
) -> list[Metric]:
    """Every text scored; an item's value is the mean over its texts (samples of one answer, or rounds)."""
    flat: list[str] = []
    golds: list[Any] = []
    sizes = []
    for text, reference, paired in zip(texts, references, rounds, strict=True):
        several = text if isinstance(text, list) else [text]
        flat += several
        golds += reference if paired else [reference] * len(several)
        sizes.append(len(several))
    metrics = []
    for metric in evaluator.score(flat, golds):
        if not metric.is_mean:
            raise ValueError(f"{metric.name} is no mean over items: it takes one text an item")
        values, at = [], 0
        for size in sizes:
            values.append(math.fsum(metric.values[at : at + size]) / size)
            at += size
        metrics.append(dataclasses.replace(mean_metric(metric.name, values), higher_is_better=metric.higher_is_better))
    return metrics


def majority(texts: Sequence[str]) -> str:
    """The most frequent text, the first of equals; empty ones only when there is no other."""
    counts = Counter(text for text in texts if text) or Counter(texts)
    return counts.most_common(1)[0][0]


def reference_of(sample: Sample, prompting: Prompting, clean: Callable[[str], str] = str) -> Reference:
    """The accepted answers of a generated item."""
    column = prompting.reader.output_column
    if column is None:
        raise ValueError("this evaluator needs reader_cfg with output_column")
    gold = sample.row[column]
    if gold is None or gold == []:
        raise DatasetError(f"{sample.row.where}: {column!r} has no answer")
    return [clean(str(one)) for one in gold] if isinstance(gold, list) else clean(str(gold))


def _macro(metrics: Sequence[Metric], samples: Sequence[Sample], column: str | None) -> list[Metric]:
    """``<metric>_macro``: the mean over groups (subjects) of their means; its variance is that of independent groups.

    Of the main metric only. ``stderr`` is None when a group has a single item.
    """
    if column is None or not metrics or not metrics[0].is_mean:
        return []
    groups: dict[str, list[float]] = {}
    for sample, value in zip(samples, metrics[0].values, strict=True):
        groups.setdefault(str(sample.row[column]), []).append(value)
    means = [mean_metric("", values) for values in groups.values()]
    value = math.fsum(mean.value for mean in means) / len(means)
    stderr = None
    errors = [mean.stderr for mean in means if mean.stderr is not None]
    if len(errors) == len(means):
        stderr = math.sqrt(math.fsum(error**2 for error in errors)) / len(means)
    name = f"{metrics[0].name}_macro"
    return [dataclasses.replace(metrics[0], name=name, value=value, stderr=stderr, is_mean=False)]
