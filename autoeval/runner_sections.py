"""The sections ``runner`` and ``conversion_runner`` of evaluator.yaml: a shape for each ``type`` (docs/runners.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from autoeval.section import Section


class RunnerSection(Section):
    """What every type has."""

    type: str
    max_num_workers: int = Field(1, gt=0, description="workers at once, each with the model loaded")
    max_attempts: int = Field(3, gt=0, description="starts of a worker for one checkpoint before it counts as failed")
    retry: int | None = Field(None, ge=0, description="the same in run.py's words: max_attempts less one")
    task_time_limit: float | None = Field(None, gt=0, description="seconds of one task, or of a conversion; null: none")
    heartbeat_timeout: float | None = Field(300.0, gt=0, description="seconds without a sign of life; null: for ever")
    detach: bool = Field(False, description="leave what runs when the daemon ends; the next start finds it again")

    @model_validator(mode="after")
    def _one_number_of_tries(self) -> RunnerSection:
        if self.retry is not None and "max_attempts" in self.model_fields_set:
            raise ValueError("'retry' and 'max_attempts' say the same: expected one of them")
        return self

    @property
    def attempts(self) -> int:
        """How often a step is begun before it has failed for good."""
        return self.max_attempts if self.retry is None else self.retry + 1

    def options(self) -> dict[str, Any]:
        """Plain values, for ``autoeval.runners.queue_from`` and ``resources_from``."""
        return self.model_dump(mode="json", exclude_none=True)


class LocalRunner(RunnerSection):
    """Processes of this machine: one that lives as long as the daemon, or with ``max_num_workers`` or ``detach``
    process groups in slots."""

    type: Literal["local"] = "local"
    num_gpus: int = Field(1, ge=0, description="of one worker in a slot; without GPUs here it runs without")
    num_cpus: int | None = Field(None, gt=0)
    minutes: int | None = Field(None, gt=0, description="of one worker's whole life")


class _Reserved(RunnerSection):
    """What a cluster reserves for one worker."""

    num_gpus: int = Field(1, ge=0)
    num_cpus: int | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)


def _is_option(word: str) -> str:
    if not word.startswith("-"):
        raise ValueError("expected an option of sbatch such as '--exclude=node7'")
    return word


class SlurmRunner(_Reserved):
    """``quotatype`` is an option of some sites only: it is given to sbatch only when it is set."""

    type: Literal["slurm"]
    partition: str | None = None
    quotatype: str | None = None
    qos: str | None = None
    account: str | None = None
    gres: str = Field("gpu", description="the name before the number: gpu, gpu:a100")
    minutes: int | None = Field(None, gt=0, description="time limit of one worker; null: the partition's")
    extra: list[Annotated[str, AfterValidator(_is_option)]] = Field([], description="further options of sbatch")


class AliyunSection(Section):
    """OpenCompass's ``aliyun_cfg``. With ``dlc_config_path`` the dlc command is used, without it the SDK."""

    workspace_id: Annotated[int | str, AfterValidator(str)]
    worker_image: str
    bashrc_path: str | None = None
    conda_env_name: str | None = None
    resource_id: str | None = None
    data_sources: str | list[str] | None = None
    priority: int | None = Field(None, ge=1, le=9)
    kind: str | None = None
    dlc_config_path: str | None = None
    dlc_program: str | None = None
    region: str | None = None
    endpoint: str | None = None
    protocol: Literal["http", "https"] | None = None


class DlcRunner(_Reserved):
    type: Literal["dlc"]
    aliyun_cfg: Annotated[
        Annotated[AliyunSection, Tag("settings")] | Annotated[Path, Tag("file")],
        Discriminator(lambda value: "file" if isinstance(value, str | Path) else "settings"),
    ] = Field(description="the settings, or the file that has them")
    minutes: int | None = Field(None, gt=0, description="time limit of one worker")


class RayRunner(_Reserved):
    type: Literal["ray"]
    address: str = Field("auto", description="auto: what RAY_ADDRESS or this machine names")


def _type_of(value: Any) -> Any:
    return value.get("type", "local") if isinstance(value, dict) else getattr(value, "type", None)


AnyRunner = Annotated[
    Annotated[LocalRunner, Tag("local")]
    | Annotated[SlurmRunner, Tag("slurm")]
    | Annotated[DlcRunner, Tag("dlc")]
    | Annotated[RayRunner, Tag("ray")],
    Discriminator(
        _type_of,
        custom_error_type="runner_type",
        custom_error_message="'type' is none of local, slurm, dlc and ray",
    ),
]
# The sections of which there are several kinds: by key, then by the tag that stands in pydantic's locations.
KINDS: dict[str, dict[str, type[BaseModel]]] = {
    "runner": {"local": LocalRunner, "slurm": SlurmRunner, "dlc": DlcRunner, "ray": RayRunner},
    "aliyun_cfg": {"settings": AliyunSection},
}
KINDS["conversion_runner"] = KINDS["runner"]
