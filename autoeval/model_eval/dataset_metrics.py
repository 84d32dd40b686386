"""``eval/model_performance_evaluation.py``: one model's answers to a file of conversations, by the metrics asked for.

The last answer of each conversation is generated from all that comes before it, and compared with the one in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.estimates import (
    Workload,
    duration_seconds,
    evaluation_duration,
    in_words,
    measure_machine,
    memory_bytes,
    memory_usage,
    size_of,
)
from autoeval.eval_output import Answer
from autoeval.model_eval.arguments import device_of_gpu, read_metrics, stay_offline
from autoeval.model_eval.given_model import GivenModel, ModelWishes, own_window, understand
from autoeval.model_eval.outcomes import CHUNK, ask
from autoeval.openicl.prompt_template import Turn
from autoeval.tasks.configs import DatasetConfig
from autoeval.tasks.icl import IclTask, evaluate_records, load_icl_task
from recorder.files import write_atomic, write_json
from recorder.results import Score
from recorder.statistics import score_interval, with_spread

logger = logging.getLogger(__name__)

_CHINESE = re.compile(r"[\u3400-\u9fff]")


def evaluate(options: argparse.Namespace) -> Answer:
    """The answer's message and content. Nothing is written before every line of the file is known to be good.

    Raises ``ValueError`` and ``OSError`` naming the file and line, the flag or the model that is wrong.
    """
    stay_offline()
    metrics = read_metrics(options.evaluation_metrics)
    output = output_files(options.output_path)
    for file in output or ():
        if file.resolve() == Path(options.dataset_path).resolve():
            raise ValueError(f"--output_path {options.output_path}: {file} is the data set and would be overwritten")
    task = load_task(Path(options.dataset_path), options.max_new_tokens, options.limit)
    model = understand(options.model_name_or_path, _wishes(options))
    estimates = estimate(model, task, options)
    loaded = model.load()
    try:
        style = model.style(loaded)
        records = ask(task, loaded, style)
    finally:
        loaded.unload()
    chinese = is_chinese(task)
    scored = {name: _scored(task, records, style, evaluator_of(name, chinese)) for name in metrics}
    content = {
        "evaluation_results": {name: round(scores[0].value, 4) for name, (scores, _) in scored.items()},
        "details": {name: _details(scores, _MEANING[name][chinese]) for name, (scores, _) in scored.items()},
        "n": len(task.samples),
        "language": "zh" if chinese else "other",
        "model": {"name": model.name, "source": model.source, "path": model.config["path"]},
        "estimates": estimates,
    }
    if output is not None:
        predictions, results = output
        write_atomic(predictions, _lines(task, records, {name: values for name, (_, values) in scored.items()}))
        content["output"] = {"predictions": str(predictions), "results": str(results)}
        write_json(results, content)
    return "Success", content


def load_task(path: Path, max_new_tokens: int, limit: int | None = None) -> IclTask:
    """The conversations of ``path`` as a task. Raises ``DatasetError`` naming file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"--dataset_path {path}: no such file")
    options = {
        "abbr": path.stem,
        "type": "MessagesDataset",
        "path": str(path.absolute()),
        "reader_cfg": {"output_column": "reference"},
        "infer_cfg": {
            "retriever": {"type": "ZeroRetriever"},
            "inferencer": {"type": "ChatInferencer", "max_out_len": max_new_tokens},
        },
        "eval_cfg": {"evaluator": {"type": "AccEvaluator"}},
    }
    return load_icl_task(DatasetConfig(path, options), data_dir=path.parent, limit=limit)


def output_files(output: str | None) -> tuple[Path, Path] | None:
    """Predictions (one JSON object a line) and results: in a folder, or beside each other when a file is named."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix in (".json", ".jsonl"):
        return path.with_suffix(".jsonl"), path.with_suffix(".json")
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output_path {path}: is a file; expected a folder, or a name that ends in .json or .jsonl")
    return path / "predictions.jsonl", path / "results.json"


def is_chinese(task: IclTask) -> bool:
    """Whether at least a tenth of the reference answers have Chinese characters in them: the metrics for Chinese count
    words of other scripts too, the others take a Chinese sentence for one word."""
    answers = [str(sample.row["reference"]) for sample in task.samples]
    return 10 * sum(bool(_CHINESE.search(answer)) for answer in answers) >= len(answers)


# What each figure is, for other languages and for Chinese: said in the answer.
_MEANING = {
    "Acc": ("share of answers equal to the reference, outer spaces aside",) * 2,
    "F1": (
        "mean token F1, words after SQuAD's normalisation",
        "mean token F1, Chinese characters and words of other scripts",
    ),
    "BLEU": (
        "corpus BLEU, sacrebleu 13a",
        "corpus BLEU over Chinese characters (sacrebleu zh); bleu_jieba: over jieba's words",
    ),
    "Rouge": (
        "mean ROUGE-L F-measure (rouge-score, no stemming); rouge1 and rouge2 beside it",
        "mean ROUGE-L F-measure over jieba's words (rouge-chinese); rouge1 and rouge2 beside it",
    ),
}


def evaluator_of(metric: str, chinese: bool) -> dict[str, Any]:
    if metric == "F1":
        return {"type": "F1Evaluator", "tokenize": "zh" if chinese else "squad"}
    if metric == "BLEU":
        return {"type": "BleuEvaluator", **({"tokenize": "zh", "also": ["jieba"]} if chinese else {})}
    if metric == "Rouge":
        return {"type": "JiebaRougeEvaluator" if chinese else "RougeEvaluator"}
    return {"type": "AccEvaluator"}


def _scored(
    task: IclTask, records: Sequence[Mapping[str, Any]], style: Any, evaluator: Mapping[str, Any]
) -> tuple[list[Score], list[float]]:
    """The scores, the main one (ROUGE: ROUGE-L) first, and its value of every item."""
    strip = {"type": "strip"}
    eval_cfg = {"evaluator": evaluator, "pred_postprocessor": strip, "dataset_postprocessor": strip}
    scores, items = evaluate_records(dataclasses.replace(task, eval_cfg=eval_cfg), records, style=style)
    ordered = sorted(scores, key=lambda score: score.metric != "rougeL")
    return ordered, [item.value for item in items if item.metric == ordered[0].metric]


def _details(scores: Sequence[Score], meaning: str) -> dict[str, Any]:
    main = scores[0]
    interval = score_interval(main.value, main.stderr, main.n)
    return {
        "score": main.value,
        "stderr": with_spread(main.value, main.stderr, main.n),
        "n": main.n,
        "confidence_interval_95": None if interval is None else [min(1.0, max(0.0, bound)) for bound in interval],
        "metrics": {score.metric: {"value": score.value, "stderr": score.stderr} for score in scores},
        "meaning": meaning,
    }


def _lines(task: IclTask, records: Sequence[Mapping[str, Any]], values: Mapping[str, Sequence[float]]) -> str:
    """One object an item: where it is from, what was asked and answered, the reference, and its value of each metric."""
    lines = []
    for number, (sample, record) in enumerate(zip(task.samples, records, strict=True)):
        item = {
            "where": sample.row.where,
            "key": sample.key,
            "messages": sample.row["dialogue"][:-1],
            "prompt": record["origin_prompt"],
            "prediction": record["prediction"],
            "reference": sample.row["reference"],
            "metrics": {name: one[number] for name, one in values.items()},
        }
        lines.append(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def estimate(model: GivenModel, task: IclTask, options: argparse.Namespace) -> dict[str, Any] | None:
    """What the run will take, said on standard error before it; ``None`` for a server, whose cost is its own."""
    directory = model.directory
    if directory is None:
        logger.info("no estimate: the model is computed by a server")
        return None
    from autoeval.models.adapter import base_of, is_adapter

    device = _device(model)
    dtype = options.dtype if options.dtype != "auto" or device != "cpu" else "float32"  # as the scorer computes
    weights = base_of(directory) if is_adapter(directory) else directory
    size = size_of(weights, dtype)
    lengths = _prompt_lengths(model, task)
    window = model.config.get("max_seq_len") or own_window(weights)
    if window is not None:
        lengths = [min(length, max(1, window - options.max_new_tokens)) for length in lengths]
    work = workload(lengths, options.max_new_tokens, device, options.per_device_batch_size, window)
    machine = measure_machine(model.config.get("device", device))
    batch = options.per_device_batch_size or work.rows
    for line in in_words(size, work, machine, batch).splitlines():
        logger.info("%s", line)
    tokens = work.items * (work.prompt_tokens + work.generated_tokens)
    return {
        "parameters": size.parameters,
        "memory_bytes": memory_bytes(size, work, device),
        "duration_seconds": duration_seconds(size, work, machine),
        "memory_usage": memory_usage(size.parameters, batch, data_type_size=size.item),
        "evaluation_duration": evaluation_duration(tokens, size.parameters, machine.flops),
    }


def workload(lengths: Sequence[int], answer: int, device: str, batch: int | None, window: int | None) -> Workload:
    """What the scorer will have under way at once for prompts of ``lengths`` tokens: a batch size bounds the tokens of a
    pass, not how many answers grow."""
    from autoeval.models.continuous import SLOTS
    from autoeval.models.hf import BATCH_TOKENS

    tokens = batch * window if batch and window else BATCH_TOKENS[device]
    rows = min(SLOTS[device], CHUNK, tokens)
    return Workload(len(lengths), statistics.fmean(lengths), answer, rows, tokens)


def _device(model: GivenModel) -> str:
    """``cuda`` or ``cpu``, as the scorer chooses it."""
    import torch

    named = str(model.config.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    return "cuda" if named.startswith("cuda") else "cpu"


def _prompt_lengths(model: GivenModel, task: IclTask) -> list[int]:
    """Tokens of each prompt, by the model's own tokenizer and template."""
    from transformers import AutoTokenizer

    from autoeval.models.adapter import base_of, is_adapter
    from autoeval.openicl.styles import CHAT_ROLES, ChatStyle, PlainStyle

    directory = model.directory
    assert directory is not None
    if is_adapter(directory) and not (directory / "tokenizer_config.json").is_file():
        directory = base_of(directory)
    place = model.config.get("tokenizer_path") or directory
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    chat = model.config["type"] == "HuggingFacewithChatTemplate"
    style = ChatStyle(tokenizer) if chat else PlainStyle()
    roles = {name: role for role, name in CHAT_ROLES.items()}
    lengths = []
    for sample in task.samples:
        turns = [Turn(message["content"], roles[message["role"]]) for message in sample.row["dialogue"][:-1]]
        text = style.render(turns, generate=True)
        lengths.append(len(tokenizer(text, add_special_tokens=style.special_tokens, verbose=False)["input_ids"]))
    return lengths


def _wishes(options: argparse.Namespace) -> ModelWishes:
    device = "auto" if options.gpu_id is None else device_of_gpu(options.gpu_id)
    return ModelWishes(
        kind=options.model_type,
        max_seq_len=options.max_seq_len,
        batch_size=options.per_device_batch_size,
        device=device,
        dtype=options.dtype,
        tokenizer=options.tokenizer,
        peft_path=options.peft_path,
        served_name=options.served_name,
    )
