"""The file that ``wandb_writer.py --config`` takes: its keys, checked, with the mistakes named."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from recorder.untrusted import parse_yaml

DEFAULT_LEDGER = "outputs/ledger.sqlite"
HOME = Path(__file__).resolve().parent.parent


class WriterConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and what was expected."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Benchmark(_Strict):
    name: str
    metrics: list[str] = Field(min_length=1)


class Evaluation(_Strict):
    """One model's results: here in ``eval_result`` (``source: file``), or where another program has written them.

    ``path`` is a file, a directory or a glob pattern (not of ``file`` and ``helm``); ``model`` which of
    several models in it. ``metrics`` (patterns of ``<task>.<metric>``) says what is taken, ``iterations`` which rows.
    ``names`` gives a task or ``<task>.<metric>`` the name that ours has. ``chance`` (by pattern of the task, as the source
    calls it) and ``groups`` (name: patterns of its members, {} for none) add to what is known.
    """

    eval_type: Literal["helm", "icl", "gpt"] = "helm"
    source: Literal["helm", "file", "lm_eval", "opencompass", "ledger", "predictions"]
    model_name: str = Field(min_length=1)
    path: str | None = None
    model: str | None = None
    metrics: list[str] = []
    names: dict[str, str] = {}
    iterations: list[int] = []
    chance: dict[str, FiniteFloat] = {}
    groups: dict[str, str | list[str]] | None = None
    percent: bool = True  # OpenCompass's figures are percentages
    token_num: FiniteFloat | None = None  # billions
    token_per_iteration: FiniteFloat | None = None  # billions
    default_iteration: int = 0
    helm_output_dir: str | None = None
    helm_suite_name: str | None = None
    benchmarks: list[Benchmark] = []
    eval_result: dict[str, dict[str, FiniteFloat]] = {}

    @model_validator(mode="after")
    def _has_its_source(self) -> Evaluation:
        if self.source == "file" and not self.eval_result:
            raise ValueError("source: file needs eval_result: {task: {metric: value}}")
        if self.source == "helm" and not (self.helm_output_dir and self.helm_suite_name and self.benchmarks):
            raise ValueError("source: helm needs helm_output_dir, helm_suite_name and benchmarks")
        if self.source in ("lm_eval", "opencompass", "ledger", "predictions") and not self.path:
            raise ValueError(f"source: {self.source} needs path: a file, a directory or a glob pattern")
        for theirs, ours in self.names.items():
            if not ours or ("." in theirs) > ("." in ours):
                raise ValueError(f"names.{theirs}: expected a task for a task, <task>.<metric> for one, found '{ours}'")
        for task, level in self.chance.items():
            if not 0.0 <= level < 1.0:
                raise ValueError(f"chance.{task}: expected a share from 0 to below 1, found {level:g}")
        return self


class WandbOptions(_Strict):
    mode: Literal["online", "offline", "disabled"] | None = None
    entity: str | None = None


class WriterConfig(_Strict):
    project: str = Field(min_length=1)
    base_url: str | None = None
    ledger: str | None = None
    wandb: WandbOptions = WandbOptions()
    evals: list[Evaluation] = []
    leaderboard: bool = False
    leaderboard_metrics: list[str] = []
    excluded_models: list[str] = []
    excluded_runs: list[str] = []
    leaderboard_iterations: dict[str, int | Literal["latest", "best"]] = {}
    scoring: Literal["chance", "minmax"] = "chance"
    report: bool = True  # with the leaderboard also report.html

    @model_validator(mode="after")
    def _names_each_model_once(self) -> WriterConfig:
        names = [evaluation.model_name for evaluation in self.evals]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"evals: the model '{name}' comes twice")
        return self

    @property
    def mode(self) -> Literal["online", "offline", "disabled"]:
        """As asked; else online where a server or a key is named, offline elsewhere."""
        if self.wandb.mode is not None:
            return self.wandb.mode
        named = self.base_url or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_BASE_URL")
        return "online" if named else "offline"


def read_config(path: Path, *, may_be_empty: bool = False) -> WriterConfig:
    """Raises ``WriterConfigError``, also when nothing is asked for, unless that ``may_be_empty``."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WriterConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise WriterConfigError(f"{path}: expected a mapping with the key 'project', found {type(content).__name__}")
    try:
        config = WriterConfig.model_validate(content)
    except ValidationError as error:
        raise WriterConfigError("\n".join(_explain(path, dict(problem)) for problem in error.errors())) from None
    if not (config.evals or config.leaderboard or may_be_empty):
        raise WriterConfigError(f"{path}: nothing to do: expected evals: [...] or leaderboard: true")
    return config


def find_path(written: str, config_path: Path) -> Path:
    """A path in the file: relative to the file, then to the working directory; the former when neither exists."""
    beside = config_path.absolute().parent / written
    return (beside if beside.exists() or not Path(written).exists() else Path(written)).resolve()


def ledger_path(config: WriterConfig, config_path: Path) -> Path:
    if config.ledger is not None:
        return find_path(config.ledger, config_path)
    candidates = [base / DEFAULT_LEDGER for base in (config_path.resolve().parent, Path.cwd(), HOME)]
    existing = [path for path in candidates if path.exists()]
    return existing[0] if existing else candidates[2 if Path.cwd() == HOME / "recorder" else 1]


def _explain(path: Path, problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{path}: {key or 'the file'}: {problem['msg']}"
    model: type[BaseModel] = WriterConfig
    sections: dict[str, type[BaseModel]] = {"evals": Evaluation, "benchmarks": Benchmark, "wandb": WandbOptions}
    for part in problem["loc"][:-1]:
        model = sections.get(str(part), model)
    near = difflib.get_close_matches(str(problem["loc"][-1]), model.model_fields, n=1, cutoff=0.0)
    return f"{path}: {key}: unknown key; the nearest known key is '{near[0]}'"
