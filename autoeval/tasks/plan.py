"""The order that the daemon gives a worker: one checkpoint, all its tasks. A plain value that travels as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from recorder.files import write_json
from recorder.results import CheckpointRef


@dataclass(frozen=True)
class TokenizerFiles:
    """``kind`` is ``gpt2`` (vocab and merges), ``sentencepiece`` or ``huggingface`` (path). Each may be a URL, which is
    read with ``storage_options``."""

    kind: Literal["gpt2", "sentencepiece", "huggingface"]
    vocab_path: str | None = None
    merge_path: str | None = None
    path: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelOptions:
    dtype: str = "auto"
    device: str = "auto"
    max_seq_len: int | None = None
    batch_tokens: int | str = "auto"
    devices: int | str = "auto"


@dataclass(frozen=True)
class ConversionOptions:
    """``verify`` says when a conversion is compared with Megatron itself; ``budget_bytes`` limits the disk space of
    all converted models of the run. The run's validation loss, read from the training log ``log_path``, is compared
    with the converted model's on ``validation_text``; ``validation_tolerance`` counts nats a token."""

    verify: Literal["never", "first", "always"] = "first"
    budget_bytes: int | None = None
    log_path: str | None = None
    validation_text: str | None = None
    validation_tolerance: float | None = None


@dataclass(frozen=True)
class IclPlan:
    datasets: tuple[str, ...]
    data_dir: str
    limit: int | None = None
    allow_code_execution: bool = False


@dataclass(frozen=True)
class HelmPlan:
    conf_path: str
    output_path: str
    suite: str
    eval_instances: int
    benchmarks: tuple[tuple[str, tuple[str, ...]], ...] | None = None  # (scenario, display metrics)
    seconds_limit: float | None = None
    num_train_trials: int | None = None


@dataclass(frozen=True)
class TaskPlan:
    """What is evaluated, whatever the checkpoint."""

    icl: IclPlan | None = None
    helm: HelmPlan | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything about one checkpoint.

    ``source`` is where its files can be read (a pinned copy), ``directory`` is ``<work_dir>/<model>/iter_NNNNNNN``
    where everything made of it goes, ``logs`` where one log file per task run goes. ``expected`` has the (name, version)
    of each task as the daemon knows them.
    """

    checkpoint: CheckpointRef
    format: str
    source: str
    directory: str
    logs: str
    tasks: TaskPlan
    expected: tuple[tuple[str, str], ...] = ()
    tokenizer: TokenizerFiles | None = None
    model: ModelOptions = ModelOptions()
    conversion: ConversionOptions = ConversionOptions()
    skip: tuple[str, ...] = ()  # tasks that killed the worker too often
    together: bool = True  # false: each task by itself, to find out which one kills the worker

    def result_path(self, task: str) -> Path:
        return Path(self.directory, "results", self.checkpoint.model, f"{file_name(task)}.json")

    def predictions_path(self, task: str) -> Path:
        return Path(self.directory, "predictions", self.checkpoint.model, f"{file_name(task)}.json")

    def log_path(self, task: str) -> Path:
        return log_path(Path(self.logs), self.checkpoint, task)

    @property
    def converted(self) -> Path:
        """Where the Hugging Face model directory is; a Hugging Face checkpoint is one already."""
        return Path(self.source) if self.format == "huggingface" else Path(self.directory, "hf")


def log_path(logs: Path, checkpoint: CheckpointRef, step: str) -> Path:
    return logs / f"{checkpoint.model}-iter_{checkpoint.iteration:07d}-{file_name(step)}.log"


def file_name(task: str) -> str:
    """``task`` as a file name: path separators would leave the directory, and a line's end the line of a log."""
    return re.sub(r"[\x00-\x1f\x7f/\\]", "_", task).lstrip(".") or "_"


def save_plan(path: Path, plan: EvaluationPlan) -> None:
    write_json(path, asdict(plan))


def load_plan(path: Path) -> EvaluationPlan:
    return plan_from_json(json.loads(path.read_text(encoding="utf-8")))


def plan_from_json(content: dict[str, Any]) -> EvaluationPlan:
    tokenizer = content["tokenizer"]
    return EvaluationPlan(
        checkpoint=CheckpointRef(**content["checkpoint"]),
        format=content["format"],
        source=content["source"],
        directory=content["directory"],
        logs=content["logs"],
        tasks=task_plan_from_json(content["tasks"]),
        expected=tuple((name, version) for name, version in content["expected"]),
        tokenizer=TokenizerFiles(**tokenizer) if tokenizer else None,
        model=ModelOptions(**content["model"]),
        conversion=ConversionOptions(**content["conversion"]),
        skip=tuple(content["skip"]),
        together=content["together"],
    )


def task_plan_from_json(content: dict[str, Any]) -> TaskPlan:
    icl, helm = content["icl"], content["helm"]
    if icl:
        icl = {**icl, "datasets": tuple(icl["datasets"])}
    if helm and helm["benchmarks"] is not None:
        helm = {**helm, "benchmarks": tuple((name, tuple(metrics)) for name, metrics in helm["benchmarks"])}
    return TaskPlan(icl=IclPlan(**icl) if icl else None, helm=HelmPlan(**helm) if helm else None)
