"""What a command line asks for, as one plain value: models, datasets, and how they are run.

Configuration files are Python in mmengine's syntax (``read_base``, ``_base_``, lazy imports) and are executed: they are
the user's own code. Classes that they import stay names, so OpenCompass's files are read where it is not installed.
"""

from __future__ import annotations

import argparse
import ast
import logging
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoeval.datasets.names import class_name
from autoeval.openicl.evaluators import check_code_execution
from autoeval.partitioners import build_partitioner
from autoeval.run.patterns import matching_files
from autoeval.run.secrets import without_secrets
from autoeval.runners import build_runner
from autoeval.summarizers import build_summarizer
from autoeval.tasks.config_files import read_python
from autoeval.tasks.configs import REPOSITORY, check_dataset, read_configs
from autoeval.tasks.model_configs import check_files, check_model, generates_only, resolved
from autoeval.tasks.names import dataset_abbr, model_abbr, refuse_double
from autoeval.tasks.results import mode_of
from recorder.messages.channel import Channel

logger = logging.getLogger("autoeval.run")

Options = dict[str, Any]
DEFAULT_DATA_DIR = "./data"
_TASKS = {"infer": "OpenICLInferTask", "eval": "OpenICLEvalTask"}
# Flags that describe the model of --hf-path, and nothing else.
_MODEL_FLAGS = (
    *("hf_type", "peft_path", "tokenizer_path", "model_kwargs", "tokenizer_kwargs", "max_seq_len", "max_out_len"),
    *("batch_size", "pad_token_id", "hf_num_gpus"),
)


@dataclass(frozen=True)
class Stage:
    """How ``infer`` or ``eval`` is cut into tasks and run, as in a configuration."""

    partitioner: Options
    runner: Options


@dataclass(frozen=True)
class Job:
    """``models`` hold no secrets: those are in ``secrets``, by the variable that stands for them."""

    models: list[Options]
    datasets: list[Options]
    infer: Stage
    eval: Stage
    summarizer: Options
    work_dir: Path
    data_dir: Path
    limit: int | None
    dump_details: bool
    allow_code_execution: bool = False
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    lark: Channel | None = None  # its address is not in its repr

    def keep(self, directory: Path) -> Options:
        """What goes into every task besides its model and datasets."""
        return {
            "work_dir": str(directory),
            "data_dir": str(self.data_dir),
            "limit": self.limit,
            "dump_details": self.dump_details,
            "allow_code_execution": self.allow_code_execution,
        }

    def dump(self) -> str:
        """A configuration file that gives this job again; secrets are to be set in the environment."""
        content = {
            "models": self.models,
            "datasets": self.datasets,
            "infer": {"partitioner": self.infer.partitioner, "runner": self.infer.runner},
            "eval": {"partitioner": self.eval.partitioner, "runner": self.eval.runner},
            "summarizer": self.summarizer,
            "work_dir": str(self.work_dir),
            "data_dir": str(self.data_dir),
            "limit": self.limit,
            "dump_eval_details": self.dump_details,
            "allow_code_execution": self.allow_code_execution,
        }
        lines = [f"# Set {name} in the environment: its value was taken out of this file.\n" for name in self.secrets]
        lines += [f"{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for key, value in content.items()]
        return "\n".join(lines)


def read_job(options: argparse.Namespace) -> Job:
    """From the command line. Raises ``ValueError`` or ``OSError`` naming the file, key or flag that is wrong."""
    config: Options = {}
    where = "the command line"
    if options.config is not None:
        where = str(options.config)
        config = read_config(Path(options.config))
        _say_without_effect(
            options, ("models", "datasets", "hf_path", *_MODEL_FLAGS), f"{where} says what is evaluated"
        )
        models, datasets = config.get("models"), config.get("datasets")
    else:
        models, datasets = _models_of_flags(options), _datasets_of_flags(options)
    for name, value in (("models", models), ("datasets", datasets)):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{where}: there are no {name} (a list called {name}, --{name}, or --hf-path)")
    assert models is not None and datasets is not None
    for model in models:
        check_model(model, where)
        if options.mode in ("all", "infer"):  # the other stages need predictions only
            try:
                check_files(model, where)
            except ValueError as error:
                if not options.dry_run:  # a plan can be made where the model is not
                    raise
                logger.warning("%s", error)
    if options.config is not None:
        datasets = [job_dataset(Path(options.config), entry) for entry in datasets]
    refuse_double("model", [model_abbr(model) for model in models])
    refuse_double("dataset", [dataset_abbr(dataset) for dataset in datasets])
    _refuse_ranking_by_chat(models, datasets)
    allowed = options.allow_code_execution or _setting(config, "allow_code_execution", bool, where) or False
    for dataset in datasets if options.mode in ("all", "eval") else ():
        check_code_execution(dataset["eval_cfg"], dataset_abbr(dataset), allowed, "--allow-code-execution")
    models, secrets = without_secrets(models)
    job = Job(
        models=models,
        datasets=datasets,
        infer=_stage(config.get("infer"), "infer", options),
        eval=_stage(config.get("eval"), "eval", options),
        summarizer=_summarizer(config, options),
        work_dir=Path(options.work_dir or config.get("work_dir") or "outputs/default"),
        data_dir=Path(options.data_dir or _setting(config, "data_dir", str, where) or DEFAULT_DATA_DIR).absolute(),
        limit=options.limit or _setting(config, "limit", int, where),
        dump_details=options.dump_eval_details or _setting(config, "dump_eval_details", bool, where) or False,
        allow_code_execution=allowed,
        secrets=secrets,
        lark=_lark(config, options) if options.lark else None,
    )
    # Whatever is wrong with them shows now and not after hours of inference.
    for stage in (job.infer, job.eval):
        build_partitioner(stage.partitioner)
        build_runner(stage.runner)
    build_summarizer(job.summarizer)
    return job


def _setting(config: Options, key: str, kind: type, where: str) -> Any:
    """A key of the configuration that a flag goes before; ``None`` when it is not there."""
    value = config.get(key)
    if value is not None and (type(value) is not kind or (isinstance(value, int) and kind is int and value < 1)):
        expected = {str: "a string", bool: "True or False", int: "a number of at least 1"}[kind]
        raise ValueError(f"{where}: {key} is {value!r}, expected {expected}")
    return value


def _say_without_effect(options: argparse.Namespace, flags: Sequence[str], why: str) -> None:
    for flag in flags:
        if getattr(options, flag) is not None:
            logger.warning("--%s has no effect: %s", flag.replace("_", "-"), why)


def read_config(file: Path) -> Options:
    """A configuration file as plain values. Raises ``ValueError`` naming the file."""
    if not file.is_file():
        raise ValueError(f"{file}: no such configuration file")
    return {key: plain(value) for key, value in read_python(file).items()}


def plain(value: Any) -> Any:
    """Classes and functions become their dotted names, tuples lists, mmengine's dictionaries ordinary ones."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, range)):
        return [plain(one) for one in value]
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".lstrip(".")
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def job_dataset(file: Path, entry: Any) -> Options:
    """A configuration's dataset as jobs have it: checked, with ``config_file`` and ``test_range`` beside the rest."""
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: datasets holds {entry!r}, expected dict(...)")
    own = {key: entry[key] for key in ("config_file", "test_range") if key in entry}  # a job's dump has them
    options = {key: value for key, value in entry.items() if key not in own}
    if "infer_cfg" in options:  # else it is one in short form, which is named after its file
        options = {"abbr": dataset_abbr(options), **options}
    return {**check_dataset(file, "datasets", options).options, "config_file": str(file.absolute()), **own}


def parse_options(pairs: Sequence[str] | None, flag: str) -> Options:
    """``["torch_dtype=torch.float16", "use_cache=True"]`` -> values as Python reads them, else text."""
    options: Options = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{flag} {pair}: expected KEY=VALUE")
        named = {"true": True, "false": False, "none": None}
        try:
            options[key] = named[text.lower()] if text.lower() in named else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def _models_of_flags(options: argparse.Namespace) -> list[Options] | None:
    if options.models:
        _say_without_effect(options, ("hf_path", *_MODEL_FLAGS), "--models says which models")
        models: list[Options] = []
        for file in matching_files(_config_dir(options) / "models", options.models):
            found = read_config(file).get("models")
            if not isinstance(found, list):
                raise ValueError(f"{file}: there is no list called models in it")
            models += found
        return models
    if not options.hf_path:
        _say_without_effect(options, _MODEL_FLAGS, "there is no --hf-path")
        return None
    return [_hf_model(options)]


def _hf_model(options: argparse.Namespace) -> Options:
    kind = {"base": "HuggingFaceBaseModel", "chat": "HuggingFacewithChatTemplate"}[options.hf_type or "chat"]
    name = options.hf_path.rstrip("/").rpartition("/")[2]
    if options.peft_path:
        name += f"_{Path(options.peft_path).name}"
    model = {
        "type": kind,
        "abbr": f"{name}_hf",
        "path": options.hf_path,
        "peft_path": options.peft_path,
        "tokenizer_path": options.tokenizer_path,
        "model_kwargs": parse_options(options.model_kwargs, "--model-kwargs"),
        "tokenizer_kwargs": parse_options(options.tokenizer_kwargs, "--tokenizer-kwargs"),
        "max_seq_len": options.max_seq_len,
        "max_out_len": options.max_out_len,
        "batch_size": options.batch_size,
        "pad_token_id": options.pad_token_id,
    }
    given = {key: value for key, value in model.items() if value is not None and value != {}}
    return {**given, "run_cfg": {"num_gpus": 1 if options.hf_num_gpus is None else options.hf_num_gpus}}


def _datasets_of_flags(options: argparse.Namespace) -> list[Options] | None:
    if not options.datasets:
        return None
    files = matching_files(_config_dir(options) / "datasets", options.datasets)
    return [job_dataset(file, dict(config.options)) for file in files for config in read_configs(file)]


def _summarizer(config: Options, options: argparse.Namespace) -> Options:
    if options.summarizer is None and config.get("summarizer"):
        return dict(config["summarizer"])
    folder = _config_dir(options) / "summarizers"
    if options.summarizer is None and not folder.is_dir():
        folder = REPOSITORY / "config" / "summarizers"
    (file,) = matching_files(folder, [options.summarizer or "example"])
    found = read_config(file).get("summarizer")
    if not isinstance(found, dict):
        raise ValueError(f"{file}: there is no dictionary called summarizer in it")
    return found


def _lark(config: Options, options: argparse.Namespace) -> Channel:
    """The configuration's ``lark_bot_url`` (and ``lark_bot_secret``), or that of ``lark.py`` beside models and datasets;
    ``${NAME}`` works. An empty secret is none."""
    file = _config_dir(options) / "lark.py"
    known = config if config.get("lark_bot_url") else read_config(file) if file.is_file() else {}
    url, secret = known.get("lark_bot_url"), known.get("lark_bot_secret")
    if not isinstance(url, str) or not isinstance(secret, str | None):
        raise ValueError(f"-l: there is no lark_bot_url (in the configuration, or in {file})")
    try:
        return Channel("lark", str(resolved(url)), str(resolved(secret)) if secret else None, "post")
    except ValueError as error:
        raise ValueError(f"-l: lark_bot_url: {error}") from None


def _stage(configured: Any, name: str, options: argparse.Namespace) -> Stage:
    """The configuration's stage, or the defaults; flags that are given go before both."""
    if configured is not None and not isinstance(configured, dict):
        raise ValueError(f"{options.config}: {name} is not a dict")
    stage = configured or {}
    for key in set(stage) - {"partitioner", "runner"}:
        raise ValueError(f"{options.config}: {name} has an unknown key '{key}' (known: partitioner, runner)")
    workers = options.max_num_workers or 1
    if name == "infer":
        by_worker = {"type": "BalancedPartitioner", "num_worker": workers}
        by_size = {"type": "SizePartitioner", "max_task_size": options.max_partition_size or 40000}
        by_size["gen_task_coef"] = options.gen_task_coef or 20
        sized = options.max_partition_size is not None or options.gen_task_coef is not None
        partitioner = by_size if sized else stage.get("partitioner") or by_worker
    else:
        partitioner = stage.get("partitioner") or {"type": "NaivePartitioner"}
    task = (stage.get("runner") or {}).get("task") or {"type": _TASKS[name]}
    if class_name(task.get("type", "")) != _TASKS[name]:
        raise ValueError(f"{options.config}: {name} has the task {task.get('type')!r}, expected {_TASKS[name]}")
    configured = stage.get("runner") or {}
    if cluster := _cluster_of_flags(options):
        if configured:
            logger.warning("--%s goes before the runner of %s", "slurm" if options.slurm else "dlc", name)
        configured = cluster
    runner = {"type": "LocalRunner", "max_num_workers": 1, "retry": 2, **configured}
    local = class_name(runner["type"]) == "LocalRunner"
    if options.max_workers_per_gpu is not None and not local:
        logger.warning("--max-workers-per-gpu has no effect: %s gives each task GPUs of its own", runner["type"])
    for key in ("max_num_workers", "retry", *(["max_workers_per_gpu"] if local else [])):
        if getattr(options, key) is not None:
            runner[key] = getattr(options, key)
    return Stage(dict(partitioner), {key: value for key, value in runner.items() if key != "task"})


def _cluster_of_flags(options: argparse.Namespace) -> Options:
    if options.dlc:
        return {"type": "DLCRunner", "aliyun_cfg": options.aliyun_cfg or "~/.aliyun.cfg"}
    if not options.slurm:
        return {}
    given = {key: getattr(options, key) for key in ("partition", "quotatype", "qos") if getattr(options, key)}
    return {"type": "SlurmRunner", **given}


def _refuse_ranking_by_chat(models: Sequence[Options], datasets: Sequence[Options]) -> None:
    for model in models:
        ranked = [dataset_abbr(one) for one in datasets if mode_of(one) != "gen"]
        if generates_only(model) and ranked:
            raise ValueError(
                f"model '{model_abbr(model)}' only generates, but {', '.join(ranked)} rank likelihoods: "
                "take their _gen datasets, or a server of completions (OpenAICompletions)"
            )


def _config_dir(options: argparse.Namespace) -> Path:
    return Path(options.config_dir) if options.config_dir else REPOSITORY / "config"
