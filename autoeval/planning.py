"""From configuration and command line to plain values: what to watch, what to evaluate, how to show it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autoeval.checkpoints import Checkpoint, SettleTimes, Watcher
from autoeval.config import AutoEval
from autoeval.copies import Copies
from autoeval.location import Url
from autoeval.storage import ObjectStore
from autoeval.tasks.plan import (
    ConversionOptions,
    EvaluationPlan,
    HelmPlan,
    IclPlan,
    ModelOptions,
    TaskPlan,
    TokenizerFiles,
)
from recorder.files import write_json
from recorder.results import CheckpointRef

FIVE_DIMENSIONS = "five_dimensions"  # an --eval-type: the dataset configuration of that name, with icl's data_dir


@dataclass(frozen=True)
class WatchOptions:
    """What the command line says. ``begin`` None means the interval, ``end`` None means for ever."""

    begin: int | None = None
    end: int | None = None
    interval: int = 1000
    check_interval_minutes: float = 30.0
    model_type: str = "megatron"
    eval_type: str = "all"

    @property
    def first(self) -> int:
        return self.interval if self.begin is None else self.begin

    @property
    def last(self) -> int | None:
        """The last iteration that is due, ``None`` when there is no end."""
        if self.end is None:
            return None
        return self.end - (self.end - self.first) % self.interval


def make_watcher(config: AutoEval, options: WatchOptions) -> Watcher:
    section = config.megatron if options.model_type == "megatron" else config.huggingface
    assert section is not None  # commands.py has checked it
    place = section.checkpoint_path
    return Watcher(
        ObjectStore(place, config.storage_options) if isinstance(place, Url) else place,
        config.model_name,
        token_per_iteration=section.token_per_iteration,
        begin=options.first,
        end=options.end,
        interval=options.interval,
        check_interval_seconds=options.check_interval_minutes * 60,
        model_type=options.model_type,
        settle=SettleTimes(**section.settle_seconds.model_dump(exclude_none=True)),
        copies=config.work_dir / ".copies" / config.model_name,
    )


def make_copies(config: AutoEval, watcher: Watcher) -> Copies | None:
    """``None`` when what is watched is a directory here."""
    if watcher.store is None:
        return None
    options = config.copies
    budget = None if options.disk_gb is None else int(options.disk_gb * 1e9)
    return Copies(watcher.store, watcher.copies, parallel=options.parallel, most=options.most, budget=budget)


def task_plan(config: AutoEval, eval_type: str) -> TaskPlan:
    """The part of the configuration that says what to evaluate."""
    icl = helm = None
    if config.icl is not None and eval_type in ("icl", "all", FIVE_DIMENSIONS):
        datasets = (FIVE_DIMENSIONS,) if eval_type == FIVE_DIMENSIONS else tuple(config.icl.datasets)
        icl = IclPlan(datasets, str(config.icl.data_dir), config.icl.limit, config.icl.allow_code_execution)
    if config.helm is not None and eval_type in ("helm", "all"):
        chosen = config.helm.benchmarks
        helm = HelmPlan(
            conf_path=str(config.helm.helm_spec_template_path),
            output_path=str(config.helm.helm_output_path or config.work_dir / "helm"),
            suite=f"{config.project_name}-{config.model_name}",
            eval_instances=config.helm.eval_instances,
            benchmarks=None if chosen is None else tuple((b.name, tuple(b.metrics)) for b in chosen),
            seconds_limit=config.helm.seconds_limit,
            num_train_trials=config.helm.num_train_trials,
        )
    return TaskPlan(icl=icl, helm=helm)


def evaluation_plan(
    config: AutoEval,
    tasks: TaskPlan,
    expected: tuple[tuple[str, str], ...],
    ref: CheckpointRef,
    readable: Checkpoint,
    skip: tuple[str, ...] = (),
) -> EvaluationPlan:
    """The order for the worker: ``readable`` is where the files of the save ``ref`` can be read."""
    options = config.model
    return EvaluationPlan(
        checkpoint=ref,
        format=readable.format,
        source=str(readable.path),
        directory=str(iteration_directory(config, ref.iteration)),
        logs=str(config.work_dir / "logs"),
        tasks=tasks,
        expected=expected,
        tokenizer=_tokenizer(config),
        model=ModelOptions(options.dtype, options.device, options.max_seq_len, options.batch_tokens, options.devices),
        conversion=_conversion(config),
        skip=skip,
    )


def iteration_directory(config: AutoEval, iteration: int) -> Path:
    return config.work_dir / config.model_name / f"iter_{iteration:07d}"


def _conversion(config: AutoEval) -> ConversionOptions:
    budget = config.model.converted_disk_gb
    options = ConversionOptions(config.model.verify, None if budget is None else int(budget * 1e9))
    section = config.megatron
    if section is None:
        return options
    return replace(
        options,
        log_path=_text(section.log_path),
        validation_text=_text(section.validation_text),
        validation_tolerance=section.validation_tolerance,
    )


def _tokenizer(config: AutoEval) -> TokenizerFiles | None:
    section = config.megatron
    if section is None:
        return None

    return TokenizerFiles(
        kind=section.tokenizer_type,
        vocab_path=_text(section.vocab_path),
        merge_path=_text(section.merge_path),
        path=_text(section.tokenizer_path),
        storage_options=config.storage_options,
    )


def _text(path: Path | Url | None) -> str | None:
    return None if path is None else str(path)


def write_settings(config: AutoEval) -> Path:
    """The views' settings, for ``recorder.refresh``."""
    path = config.work_dir / "settings.json"
    write_json(
        path,
        {
            "project": config.wandb_project,
            "title": config.project_name,
            "baselines": None if config.baselines is None else str(config.baselines),
            "wandb": {
                "mode": config.wandb.mode,
                "project": config.wandb_project,
                "entity": config.wandb.entity,
                "base_url": config.wandb.base_url,
            },
        },
    )
    return path
