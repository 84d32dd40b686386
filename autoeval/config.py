"""evaluator.yaml, typed. Reading it either gives a complete configuration or one message a person can act on."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from autoeval.location import Location, StorageOptions
from autoeval.log_files import LogLimits
from autoeval.order import Order
from autoeval.runner_sections import KINDS, AnyRunner, LocalRunner
from autoeval.section import Section
from autoeval.storage import is_url
from autoeval.yaml_file import ConfigError, YamlFile
from recorder.messages.channel import Channel, LarkFormat, check_address

logger = logging.getLogger(__name__)

# Keys of the configuration that Data-Juicer published: users bring such files along. They mean nothing here.
_LEGACY_KEYS = {
    "auto_eval": {"gpt_evaluation"},
    "megatron": {"megatron_home", "process_num", "max_tokens"},
    "helm": {"helm_env_name"},
}


def _checked_name(value: str) -> str:
    """Names become directory names and W&B names, so they may not climb out of a directory."""
    if not value or value[0] in ".-" or any(not (c.isalnum() or c in "._+-") for c in value):
        raise ValueError("expected letters, digits, '.', '_', '+' or '-', not beginning with '.' or '-'")
    return value


Name = Annotated[str, AfterValidator(_checked_name)]


class SettleSection(Section):
    """Seconds without a change before a conclusion is drawn that nothing in the files proves: see ``SettleTimes``."""

    marks: float | None = Field(None, ge=0)
    behind: float | None = Field(None, ge=0)
    legacy: float | None = Field(None, ge=0)
    quiet: float | None = Field(None, ge=0)
    disorder: float | None = Field(None, ge=0)
    abandoned: float | None = Field(None, ge=0)
    upload: float | None = Field(None, ge=0)


class MegatronSection(Section):
    checkpoint_path: Location
    tokenizer_type: Literal["gpt2", "sentencepiece", "huggingface"]
    vocab_path: Location | None = None
    merge_path: Location | None = None
    tokenizer_path: Location | None = None
    token_per_iteration: float | None = Field(None, gt=0, description="billions of tokens")
    log_path: Path | None = Field(None, description="the run's training log")
    validation_text: Path | None = Field(None, description="text, or .npy of token ids, like the run's validation set")
    validation_tolerance: float | None = Field(None, ge=0, description="nats a token above the run's validation loss")
    settle_seconds: SettleSection = SettleSection()

    @model_validator(mode="after")
    def _tokenizer_files(self) -> MegatronSection:
        needed = ("vocab_path", "merge_path") if self.tokenizer_type == "gpt2" else ("tokenizer_path",)
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"tokenizer_type {self.tokenizer_type} needs {' and '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _text_to_compare_on(self) -> MegatronSection:
        if self.validation_text is not None and self.log_path is None:
            raise ValueError("validation_text needs log_path: the training log tells the run's validation loss")
        return self


class HuggingFaceSection(Section):
    checkpoint_path: Location
    token_per_iteration: float | None = Field(None, gt=0, description="billions of tokens")
    settle_seconds: SettleSection = SettleSection()


class Benchmark(Section):
    name: str
    metrics: list[str] = Field([])


class HelmSection(Section):
    helm_spec_template_path: Path
    helm_output_path: Path | None = None
    eval_instances: int = Field(100, gt=0)
    num_train_trials: int | None = Field(None, gt=0, description="few-shot samples of every run; null: the entry's own")
    benchmarks: list[Benchmark] | None = None
    seconds_limit: float | None = Field(None, gt=0, description="of one run of one scenario")


class IclSection(Section):
    datasets: list[str] = Field(min_length=1)
    data_dir: Path = Path("data")
    limit: int | None = Field(None, gt=0)
    allow_code_execution: bool = Field(False, description="HumanEval runs what the model wrote, isolated")


class ModelSection(Section):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_seq_len: int | None = Field(None, gt=1)
    batch_tokens: int | Literal["auto"] = "auto"
    devices: Annotated[int, Field(gt=0)] | Literal["auto"] = Field("auto", description="how many may be used at once")
    keep_converted: int = Field(1, ge=0, description="converted models left on disk, those of the highest iterations")
    converted_disk_gb: float | None = Field(None, gt=0, description="10^9 bytes that they may take together")
    verify: Literal["never", "first", "always"] = Field("first", description="compare with Megatron's own logits")


class WandbSection(Section):
    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str | None = None
    entity: str | None = None
    base_url: str | None = None


def _checked_address(value: SecretStr) -> SecretStr:
    if value.get_secret_value():
        check_address(value.get_secret_value())
    return value


# The URL of a webhook lets anybody who has it write to the group: it is a secret. An empty one means no messages.
Webhook = Annotated[SecretStr, AfterValidator(_checked_address)]
_SECRET_SECTIONS = frozenset({"lark", "slack", "webhook", "storage_options"})


class LarkSection(Section):
    webhook: Webhook
    secret: SecretStr | None = Field(None, description="of the bot's signature verification, when that is on")
    format: LarkFormat = "card"


class SlackSection(Section):
    webhook: Webhook


class WebhookSection(Section):
    url: Webhook


class LogsSection(Section):
    """Of ``daemon.log``, ``worker.log``, ``refresh.log`` and ``publish.log`` in ``<work_dir>/logs``."""

    max_mb: float = Field(20.0, gt=0, description="10^6 bytes at which a file is rotated")
    keep: int = Field(5, ge=1, description="former files that stay beside it: .1, .2, …")

    @property
    def limits(self) -> LogLimits:
        return LogLimits(max(1, int(self.max_mb * 1e6)), self.keep)


class CopiesSection(Section):
    """Of checkpoints that lie in a store."""

    most: int = Field(2, ge=1, description="on the disk at a time: the one being evaluated, and the next")
    disk_gb: float | None = Field(None, gt=0, description="10^9 bytes that they may take together; null: what is free")
    parallel: int = Field(4, ge=1, le=64, description="requests at a time, of 16 MiB each")


class AutoEval(Section):
    """One watched training run."""

    project_name: Name
    model_name: Name
    work_dir: Path = Field(validation_alias=AliasChoices("work_dir", "cache_dir"))
    megatron: MegatronSection | None = None
    huggingface: HuggingFaceSection | None = None
    helm: HelmSection | None = None
    icl: IclSection | None = None
    model: ModelSection = ModelSection()
    runner: AnyRunner = LocalRunner()
    conversion_runner: AnyRunner | None = Field(None, description="where checkpoints are converted; null: as runner")
    order: Order = "newest-first"
    max_backlog: int | None = Field(None, ge=1, description="checkpoints that may wait; those last in turn are missed")
    baselines: Path | None = None
    storage_options: StorageOptions = Field({}, description="for fsspec: endpoint_url, profile, anon; never secrets")
    copies: CopiesSection = CopiesSection()
    logs: LogsSection = LogsSection()
    wandb: WandbSection = WandbSection()
    lark: LarkSection | None = None
    slack: SlackSection | None = None
    webhook: WebhookSection | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> AutoEval:
        if self.megatron is None and self.huggingface is None:
            raise ValueError("expected a section 'megatron' (or 'huggingface') that says which checkpoints to watch")
        if self.helm is None and self.icl is None:
            raise ValueError("expected a section 'helm' or 'icl' (or both) that says what to evaluate")
        return self

    @property
    def wandb_project(self) -> str:
        return self.wandb.project or self.project_name

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Where messages go; nowhere by default."""
        found: list[Channel] = []
        if self.lark is not None and (address := self.lark.webhook.get_secret_value()):
            secret = self.lark.secret.get_secret_value() if self.lark.secret is not None else ""
            found.append(Channel("lark", address, secret or None, self.lark.format))
        if self.slack is not None and (address := self.slack.webhook.get_secret_value()):
            found.append(Channel("slack", address))
        if self.webhook is not None and (address := self.webhook.url.get_secret_value()):
            found.append(Channel("webhook", address))
        return tuple(found)


def detached(config: AutoEval) -> AutoEval:
    """``config`` with what runs for it left alone when the daemon ends."""
    changes: dict[str, Any] = {"runner": config.runner.model_copy(update={"detach": True})}
    if config.conversion_runner is not None:
        changes["conversion_runner"] = config.conversion_runner.model_copy(update={"detach": True})
    return config.model_copy(update=changes)


def load_config(path: Path | str) -> list[AutoEval]:
    """Read an evaluator.yaml: one ``AutoEval`` a watched run, all paths absolute.

    Raises ``ConfigError`` with all that is wrong, a line each: file, line, key, and what was expected there.
    """
    path = Path(path)
    source = YamlFile(path)
    for key in source.content:
        if key != "auto_eval":
            raise ConfigError(f"{source.where((key,))}: unknown key; expected 'auto_eval'")
    if "auto_eval" not in source.content:
        raise ConfigError(f"{path}: the key 'auto_eval' is missing")
    value = source.content["auto_eval"]
    many = isinstance(value, list)
    runs: list[AutoEval] = []
    complaints = list(source.unset)
    for index, entry in enumerate(value if many else [value]):
        location: tuple[str | int, ...] = ("auto_eval", index) if many else ("auto_eval",)
        if not isinstance(entry, dict):
            complaints.append(f"{source.where(location)}: expected a mapping, found {type(entry).__name__}")
            continue
        try:
            runs.append(_parse(source, entry, location))
        except ConfigError as error:
            complaints += str(error).splitlines()
    if complaints:
        raise ConfigError("\n".join(_first_of_each_place(complaints)))
    if not runs:
        raise ConfigError(f"{source.where(('auto_eval',))}: the list is empty")
    _check_distinct(source, runs)
    return runs


def _first_of_each_place(complaints: list[str]) -> list[str]:
    """A variable that is not set is told once, not also as a value of the wrong form."""
    first: dict[tuple[str, ...], str] = {}
    for line in complaints:
        first.setdefault(tuple(line.split(": ", 2)[:2]), line)
    return list(first.values())


def _parse(source: YamlFile, entry: dict[str, Any], location: tuple[str | int, ...]) -> AutoEval:
    entry = _without_legacy_keys(source, entry)
    try:
        config = AutoEval.model_validate(entry)
    except ValidationError as error:
        lines = [_explain(source, location, problem) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    return with_absolute_paths(config, source.path.resolve().parent)


def _without_legacy_keys(source: YamlFile, entry: dict[str, Any]) -> dict[str, Any]:
    found: list[str] = []

    def strip(mapping: dict[str, Any], section: str) -> dict[str, Any]:
        legacy = _LEGACY_KEYS.get(section, set())
        found.extend(f"{section}.{key}" for key in mapping if key in legacy)
        return {key: value for key, value in mapping.items() if key not in legacy}

    stripped = strip(entry, "auto_eval")
    for section in ("megatron", "helm"):
        if isinstance(stripped.get(section), dict):
            stripped[section] = strip(stripped[section], section)
    if found:
        logger.warning("%s: keys that mean nothing here are passed over: %s", source.path, ", ".join(found))
    return stripped


def _explain(source: YamlFile, location: tuple[str | int, ...], problem: Any) -> str:
    inner, found = tuple(problem["loc"]), problem.get("input")
    tagged = [place for place, part in enumerate(inner[:-1]) if part in KINDS]  # of which kind it is stands after it
    place_in_file = [*location, *(part for place, part in enumerate(inner) if place - 1 not in tagged)]
    if problem["type"] == "runner_type" and isinstance(found, dict):
        place_in_file, found = [*place_in_file, "type"], found.get("type")
    where = source.where(tuple(place_in_file))
    if problem["type"] == "extra_forbidden":
        known = _keys_at(inner[:-1])
        near = difflib.get_close_matches(str(inner[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: the key is missing"
    message = problem["msg"].removeprefix("Value error, ")
    can_be_shown = (isinstance(found, (str, int, float, bool)) or found is None) and not _SECRET_SECTIONS & set(inner)
    can_be_shown = can_be_shown and not (isinstance(found, str) and is_url(found) and "@" in found)
    shown = f", found {found!r}" if can_be_shown else ""
    return f"{where}: {message}{shown}"


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The known keys of the section at ``location`` (list indices are passed through)."""
    model: type[BaseModel] = AutoEval
    for before, part in zip(("", *location), location, strict=False):
        if kind := KINDS.get(str(before), {}).get(str(part)):
            model = kind
            continue
        if isinstance(part, int) or part not in model.model_fields:
            continue
        nested = nested_section(model.model_fields[part].annotation)
        if nested is None:
            return []
        model = nested
    return sorted(model.model_fields)


def nested_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = nested_section(argument)
        if found is not None:
            return found
    return None


def with_absolute_paths(section: Any, base: Path) -> Any:
    """``section`` with each relative ``Path`` made absolute, nested sections too."""
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changes[name] = resolve_path(value, base)
        elif isinstance(value, Section):
            changes[name] = with_absolute_paths(value, base)
    if isinstance(section, IclSection):
        changes["datasets"] = [
            str(resolve_path(Path(n), base)) if n.endswith(".py") else n for n in section.datasets or ()
        ]
    return section.model_copy(update=changes)


def resolve_path(path: Path, base: Path) -> Path:
    """Relative paths belong to ``base`` (the file's directory) unless they exist only below the working directory."""
    path = path.expanduser()
    if path.is_absolute():
        return path
    beside_file, below_here = base / path, Path.cwd() / path
    return below_here if below_here.exists() and not beside_file.exists() else beside_file.resolve()


def _check_distinct(source: YamlFile, runs: list[AutoEval]) -> None:
    seen: set[tuple[Path, str]] = set()
    for run in runs:
        key = (run.work_dir, run.model_name)
        if key in seen:
            raise ConfigError(
                f"{source.path}: auto_eval: two runs share model_name {run.model_name} and work_dir {run.work_dir}"
            )
        seen.add(key)
    for run in runs[1:]:  # what is shown is made of one ledger: it has one title, one project, one set of baselines
        other = next(other for other in runs if other.work_dir == run.work_dir)
        for name in ("project_name", "baselines", "logs", "wandb", "lark", "slack", "webhook"):
            if getattr(run, name) != getattr(other, name):
                raise ConfigError(
                    f"{source.path}: auto_eval: {other.model_name} and {run.model_name} share work_dir {run.work_dir} "
                    f"but not {name}: expected the same, or a work_dir for each"
                )
