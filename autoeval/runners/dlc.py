"""Alibaba Cloud's PAI-DLC: jobs of one container each, through its SDK or through its ``dlc`` command.

Neither repeats a request or knows that a job was asked for twice, so every job carries our key as a tag and is looked up
by it before it is submitted again. States: help.aliyun.com/zh/pai, GetJob, "Status".
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused, passed_on

logger = logging.getLogger(__name__)

TAG = "autoeval-key"
SECRET = "AUTOEVAL_SECRET_"  # begins the names of variables that hold what was taken out of a configuration
CALL_SECONDS = 60
_WAITING = frozenset({"Creating", "Queuing", "Bidding", "EnvPreparing", "SanityChecking", "Restarting"})
_RUNNING = frozenset({"Running", "Stopping", "SucceededReserving", "FailedReserving"})
_AGAIN = frozenset({"Succeeded", "Failed"})  # Stopped was somebody's will


@dataclass(frozen=True)
class DlcOptions:
    """``bashrc_path`` and ``conda_env_name`` make the container's environment, in OpenCompass's way. ``data_sources`` are
    ids of mounted storage: the job must see the same files under the same paths as this machine."""

    workspace_id: str
    worker_image: str
    bashrc_path: str | None = None
    conda_env_name: str | None = None
    resource_id: str | None = None
    data_sources: tuple[str, ...] = ()
    priority: int | None = None
    kind: str = "PyTorchJob"


@dataclass(frozen=True)
class DlcJob:
    """One job as asked for: shell ``command``, ``cpu`` cores, ``memory`` in GiB."""

    key: str
    name: str
    command: str
    gpu: int
    cpu: int
    memory: int
    minutes: int | None
    environment: Mapping[str, str]


class Transport(Protocol):
    """How the service is asked. Raises ``QueueError`` or ``QueueRefused`` as ``Queue`` does."""

    def create(self, options: DlcOptions, job: DlcJob) -> str: ...

    def status(self, job: str) -> tuple[str, str]:
        """(Status, why); ("", "") for a job that is not known."""
        ...

    def stop(self, job: str) -> None: ...

    def find(self, options: DlcOptions, key: str) -> str | None: ...


class Dlc:
    """One task a job: the service has no arrays."""

    arrays = False

    def __init__(self, options: DlcOptions, transport: Transport) -> None:
        self.options, self.transport = options, transport

    def submit(self, array: JobArray) -> str:
        if array.size != 1:
            raise ValueError(f"a DLC job has one task, not {array.size}")
        wanted = array.resources
        job = DlcJob(
            key=array.key,
            name=re.sub(r"[^A-Za-z0-9_.-]+", "-", array.name)[:200].strip("-") or "autoeval",
            command=self._command([*array.command, "0"]),
            gpu=wanted.num_gpus,
            # OpenCompass's sizes, where none are given.
            cpu=wanted.num_cpus or max(6 * wanted.num_gpus, 8),
            memory=round(wanted.memory_gb or max(32 * wanted.num_gpus, 48)),
            minutes=wanted.minutes,
            environment={**passed_on(), **array.environment},
        )
        return self.transport.create(self.options, job)

    def _command(self, words: list[str]) -> str:
        steps = []
        if self.options.bashrc_path:
            steps.append(f"source {shlex.quote(self.options.bashrc_path)}")
        if self.options.conda_env_name:
            # Then the environment's own interpreter is meant, not the one that runs here.
            steps.append(f"conda activate {shlex.quote(self.options.conda_env_name)}")
            words = ["python", *words[1:]]
        steps += [f"cd {shlex.quote(str(Path.cwd()))}", f"exec {shlex.join(words)}"]
        return shlex.join(["bash", "-c", " && ".join(steps)])  # source is bash's

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        states: dict[str, list[JobState]] = {}
        for job in jobs:
            try:
                states[job] = [state_of(*self.transport.status(job))]
            except (QueueError, QueueRefused) as error:
                states[job] = [JobState("unknown", reason=str(error))]
        return states

    def cancel(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            job = job.removesuffix("_0")
            try:
                self.transport.stop(job)
            except (QueueError, QueueRefused) as error:
                logger.error("job %s may still run: %s", job, error)

    def told(self, log: str) -> str | None:
        del log  # the service keeps a container's log itself
        return None

    def find(self, key: str) -> str | None:
        return self.transport.find(self.options, key)


def state_of(status: str, reason: str) -> JobState:
    """From GetJob's Status and what it says beside it."""
    if not status:
        return JobState("gone", again=True)
    if status in _WAITING:
        return JobState("waiting", status, reason)
    if status in _RUNNING:
        return JobState("running", status, reason)
    if status in ("Succeeded", "Failed", "Stopped"):
        # The runner's words for an end by the task's own exit code.
        name = {"Succeeded": "COMPLETED", "Failed": "FAILED"}.get(status, "STOPPED")
        return JobState("ended", name, reason, status in _AGAIN)
    return JobState("unknown", status, f"DLC says {status!r}, which is not known here")


class DlcSdk:
    """The official SDK. Credentials come by Alibaba's own chain (``ALIBABA_CLOUD_ACCESS_KEY_ID`` and ``…_SECRET``, its
    profile files, a role of the machine)."""

    def __init__(self, region: str = "cn-hangzhou", endpoint: str | None = None, protocol: str = "https") -> None:
        try:
            from alibabacloud_credentials.client import Client as Credentials
            from alibabacloud_pai_dlc20201203.client import Client
            from alibabacloud_tea_openapi.models import Config
        except ImportError as error:
            raise QueueRefused(
                f"DLC needs a package: pip install alibabacloud_pai_dlc20201203==1.11.6 ({error})"
            ) from error
        try:
            credentials = Credentials()
            credentials.get_credential()
        except Exception as error:
            raise QueueRefused(f"DLC: no credentials (ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET): {error}") from error
        self._client = Client(
            Config(
                credential=credentials,
                endpoint=endpoint or f"pai-dlc.{region}.aliyuncs.com",
                protocol=protocol,
                connect_timeout=10_000,
                read_timeout=CALL_SECONDS * 1000,
            )
        )

    def _call(self, what: str, *arguments: Any) -> Any:
        from darabonba.exceptions import DaraException, UnretryableException

        try:
            return getattr(self._client, what)(*arguments).body
        except DaraException as error:
            code, status = getattr(error, "code", ""), getattr(error, "status_code", None)
            message = f"DLC {what}: {code or type(error).__name__}: {getattr(error, 'message', error)}"
            if status == 404:
                raise LookupError(message) from error
            passing = status is None or status == 429 or status >= 500 or "Throttling" in str(code)
            raise (QueueError if passing else QueueRefused)(message) from error
        except (UnretryableException, OSError) as error:  # no connection
            raise QueueError(f"DLC {what}: {getattr(error, 'message', error)}") from error

    def create(self, options: DlcOptions, job: DlcJob) -> str:
        from alibabacloud_pai_dlc20201203 import models

        resources = models.ResourceConfig(cpu=str(job.cpu), gpu=str(job.gpu), memory=f"{job.memory}Gi")
        request = models.CreateJobRequest(
            display_name=job.name,
            job_type=options.kind,
            workspace_id=options.workspace_id,
            resource_id=options.resource_id,
            priority=options.priority,
            user_command=job.command,
            envs=dict(job.environment),
            data_sources=[models.CreateJobRequestDataSources(data_source_id=one) for one in options.data_sources],
            job_specs=[
                models.JobSpec(type="Worker", pod_count=1, image=options.worker_image, resource_config=resources)
            ],
            job_max_running_time_minutes=job.minutes,
            settings=models.JobSettings(tags={TAG: job.key}),
        )
        try:
            return str(self._call("create_job", request).job_id)
        except LookupError as error:
            raise QueueRefused(str(error)) from error

    def status(self, job: str) -> tuple[str, str]:
        from alibabacloud_pai_dlc20201203 import models

        try:
            body = self._call("get_job", job, models.GetJobRequest())
        except LookupError:
            return "", ""
        return str(body.status or ""), ": ".join(filter(None, [body.reason_code, body.reason_message]))

    def stop(self, job: str) -> None:
        try:
            self._call("stop_job", job)
        except (LookupError, QueueRefused) as error:  # it has ended already, or is not known any more
            logger.info("%s", error)

    def find(self, options: DlcOptions, key: str) -> str | None:
        from alibabacloud_pai_dlc20201203 import models

        request = models.ListJobsRequest(workspace_id=options.workspace_id, tags={TAG: key}, page_size=10)
        try:
            jobs = self._call("list_jobs", request).jobs or []
        except LookupError as error:
            raise QueueError(str(error)) from error
        # A service that passes the tag over would give us somebody else's job.
        return next(
            (str(job.job_id) for job in jobs if (job.settings and (job.settings.tags or {}).get(TAG)) == key), None
        )


class DlcCommand:
    """The ``dlc`` command, which has its own file with credentials (``dlc config``). It cannot search by tag, so a
    submission whose answer was lost may run twice, which does no harm to results."""

    def __init__(self, config: str | None, program: str = "dlc") -> None:
        self._program, self._config = program, config

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        flags = ["--config", self._config] if self._config else []
        try:
            done = subprocess.run(
                [self._program, *words, *flags], capture_output=True, text=True, timeout=CALL_SECONDS, check=False
            )
        except FileNotFoundError:
            raise QueueRefused(f"{self._program}: there is no such program on this machine") from None
        except subprocess.TimeoutExpired:
            raise QueueError(f"{self._program} {words[0]} gave no answer within {CALL_SECONDS} s") from None
        return done

    def create(self, options: DlcOptions, job: DlcJob) -> str:
        for name, value in job.environment.items():
            if name.startswith(SECRET):
                raise QueueRefused(
                    "the dlc command takes a job's environment on its command line, where every user of this machine reads "
                    "it: a model's key cannot go that way; leave out dlc_config_path (then the SDK is used)"
                )
            if "," in value:
                raise QueueRefused(f"the dlc command cannot be given {name}, which has a comma in it: {value!r}")
        words = ["submit", options.kind.lower(), f"--name={job.name}", f"--command={job.command}"]
        words += [f"--workspace_id={options.workspace_id}", "--workers=1", f"--worker_image={options.worker_image}"]
        words += [f"--worker_cpu={job.cpu}", f"--worker_gpu={job.gpu}", f"--worker_memory={job.memory}Gi"]
        words += [f"--tags={TAG}={job.key}"]
        optional = {
            "resource_id": options.resource_id,
            "priority": options.priority,
            "data_sources": ",".join(options.data_sources) or None,
            "job_max_running_time_minutes": job.minutes,
            "envs": ",".join(f"{name}={value}" for name, value in job.environment.items()) or None,
        }
        words += [f"--{name}={value}" for name, value in optional.items() if value is not None]
        done = self._call(*words)
        said = f"{done.stdout}\n{done.stderr}"
        found = re.search(r"\bdlc[0-9a-z]{6,}\b", done.stdout)
        if done.returncode == 0 and found:
            return found[0]
        passing = re.search(r"timeout|timed out|throttl|\b(429|5\d\d)\b|connection", said, re.IGNORECASE)
        raise (QueueError if passing else QueueRefused)(f"dlc submit: {_last_line(said)}")

    def status(self, job: str) -> tuple[str, str]:
        done = self._call("get", "job", job)
        text = done.stdout[done.stdout.find("{") :] if "{" in done.stdout else ""  # lines may come before the JSON
        try:
            content = json.loads(text)
        except ValueError:
            said = f"{done.stdout}\n{done.stderr}"
            if re.search(r"not (found|exist)|\b404\b", said, re.IGNORECASE):
                return "", ""
            raise QueueError(f"dlc get job {job}: {_last_line(said)}") from None
        return str(content.get("Status", "")), str(content.get("ReasonMessage") or content.get("ReasonCode") or "")

    def stop(self, job: str) -> None:
        done = self._call("stop", "job", job, "--force")
        if done.returncode != 0 and "can't be stopped" not in f"{done.stdout}{done.stderr}":
            raise QueueError(f"dlc stop job {job}: {_last_line(done.stdout + done.stderr)}")

    def find(self, options: DlcOptions, key: str) -> str | None:
        del options, key
        return None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no answer")
