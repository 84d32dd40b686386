"""Slurm by its own commands: sbatch, squeue, scancel, and sacct where a site has accounting.

Decided by a job's state and never by an exit code alone: a cancelled job whose script ended in order says CANCELLED with
0:0. A controller that does not answer means that nothing is known, not that a job is gone. See slurm.schedmd.com,
sections "JOB STATE CODES" and "JOB REASON CODES" of squeue's page.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused, Resources
from autoeval.runners.worker_process import worker_environment
from recorder.files import write_atomic

logger = logging.getLogger(__name__)

CALL_SECONDS = 60.0
_WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "SUSPENDED", "RESIZING", "STAGE_OUT", "STOPPED", "SIGNALING"}
)
_RUNNING = frozenset({"RUNNING", "COMPLETING"})
_HELD = frozenset({"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
# Reasons of a pending job that no time will mend.
_HELD_REASONS = re.compile(
    r"held|BadConstraints|DependencyNeverSatisfied|Invalid(Account|QOS)|(Partition|QOS|Assoc)\w*(Node|Time|Wall\w*)Limit$"
    r"|PartitionInactive|PartitionConfig|\w*MaxWallDurationPerJobLimit|AccountNotAllowed|QOSNotAllowed",
    re.IGNORECASE,
)
# Ends that are not of somebody's will. COMPLETED is one when outputs are missing.
_AGAIN = frozenset(
    {"COMPLETED", "FAILED", "BOOT_FAIL", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "DEADLINE"}
)
_LAUNCH_FAILED = re.compile(r"launch.failed", re.IGNORECASE)
_NO_MEMORY = re.compile(r"slurmstepd[^:]*: error: .*(exceeded (job )?memory limit|oom[-_ ]kill)", re.IGNORECASE)
# sbatch's complaints that may be gone a moment later; all others are about what was asked for.
_PASSING = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|reset|timed out)|temporarily|try again"
    r"|zero bytes were transmitted|communication|submit limit|MaxSubmit|slurm_receive_msg|protocol authentication",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SlurmOptions:
    """``quotatype`` is an option of some sites only, so it is given only when it is set. ``extra`` goes to sbatch as it
    is, one word each."""

    partition: str | None = None
    quotatype: str | None = None
    qos: str | None = None
    account: str | None = None
    gres: str = "gpu"  # the name before the number: gpu, gpu:a100
    extra: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        named = {
            "partition": self.partition,
            "quotatype": self.quotatype,
            "qos": self.qos,
            "account": self.account,
        }
        return [f"--{name}={value}" for name, value in named.items() if value is not None] + list(self.extra)

    def wanted(self, resources: Resources) -> list[str]:
        """The options that ask for ``resources``, for sbatch and srun alike."""
        flags = []
        if resources.num_gpus:
            flags.append(f"--gres={self.gres}:{resources.num_gpus}")
        if resources.num_cpus is not None:
            flags.append(f"--cpus-per-task={resources.num_cpus}")
        if resources.memory_gb is not None:
            flags.append(f"--mem={round(resources.memory_gb * 1024)}M")
        if resources.minutes is not None:
            flags.append(f"--time={resources.minutes}")
        return flags


class Slurm:
    """The cluster that ``SLURM_CONF`` (or the system's configuration) names."""

    arrays = True

    def __init__(self, options: SlurmOptions) -> None:
        self.options = options
        self._accounting: bool | None = None  # until it was asked

    def submit(self, array: JobArray) -> str:
        found = re.search(r"^(\d+)(;\S+)?$", self._sbatch(array), re.MULTILINE)
        if found is None:
            raise QueueError("sbatch gave no job id")
        return found[1]

    def _sbatch(self, array: JobArray) -> str:
        script = array.log.with_suffix(".sh")
        words = shlex.join(array.command)
        write_atomic(script, f'#!/bin/sh\nexec {words} "$SLURM_ARRAY_TASK_ID"\n')
        try:
            done = _call(
                ["sbatch", *self.flags(array), str(script)], environment={**worker_environment(), **array.environment}
            )
        except FileNotFoundError:
            raise QueueRefused("sbatch: there is no such program on this machine; is this a Slurm cluster?") from None
        if done.returncode == 0:
            return done.stdout
        said = " ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines()).strip()
        passing = done.returncode < 0 or _PASSING.search(said)  # it was killed: that is no word of Slurm's
        raise (QueueError if passing else QueueRefused)(f"sbatch: {said or done.returncode}")

    def flags(self, array: JobArray) -> list[str]:
        """What sbatch is given, without the script."""
        return [
            "--parsable",
            f"--array=0-{array.size - 1}%{array.at_once}",
            f"--job-name={array.name[:200]}",
            f"--comment={array.key}",
            "--nodes=1",
            "--ntasks=1",
            f"--output={str(array.log.with_suffix('')).replace('%', '%%')}.%a{array.log.suffix}",
            "--open-mode=append",  # a requeued job keeps what its first start wrote
            "--export=ALL",
            *self.options.flags(),
            *self.options.wanted(array.resources),
        ]

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        unknown = JobState("unknown", reason="Slurm's controller does not answer")
        try:
            rows = self._squeue(jobs)
        except QueueError as error:
            unknown = JobState("unknown", reason=str(error))
            return {job: [unknown] * size for job, size in jobs.items()}
        states = {
            job: [
                state_of(*rows[task]) if (task := f"{job}_{number}") in rows else JobState("gone", again=True)
                for number in range(size)
            ]
            for job, size in jobs.items()
        }
        forgotten = [job for job, found in states.items() if any(state.kind == "gone" for state in found)]
        if forgotten and (told := self._sacct(forgotten)):
            for job in forgotten:
                states[job] = [
                    state_of(told[task], "") if state.kind == "gone" and (task := f"{job}_{number}") in told else state
                    for number, state in enumerate(states[job])
                ]
        return states

    def _squeue(self, jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
        """(state, reason) by ``<job>_<number>``, of the jobs that the controller still knows."""
        chosen = ",".join(jobs)
        try:
            done = _call(["squeue", "--noheader", "--array", "--states=all", f"--jobs={chosen}", "--format=%i|%T|%r"])
        except FileNotFoundError:
            raise QueueError("squeue: there is no such program on this machine") from None
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            raise QueueError(f"squeue: {done.stderr.strip() or done.returncode}")
        rows = (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
        return {task.strip(): (state.strip(), reason.strip()) for task, state, reason in rows}

    def _sacct(self, jobs: Sequence[str]) -> dict[str, str]:
        """The state by ``<job>_<number>`` from accounting; nothing where there is none."""
        if self._accounting is False:
            return {}
        flags = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(jobs)}"]
        try:
            done = _call(["sacct", *flags])
        except (FileNotFoundError, QueueError):
            return {}
        self._accounting = done.returncode == 0
        rows = (line.split("|") for line in done.stdout.splitlines())
        return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}  # CANCELLED by 1000

    def told(self, log: str) -> str | None:
        # Where memory is not limited by cgroups, a job that took too much is just FAILED.
        return "OUT_OF_MEMORY" if _NO_MEMORY.search(log) else None

    def cancel(self, jobs: Iterable[str]) -> None:
        if not (chosen := list(jobs)):
            return
        try:
            done = _call(["scancel", *chosen])
        except (FileNotFoundError, QueueError) as error:
            logger.error("jobs %s may still run: scancel: %s", ", ".join(chosen), error)
            return
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            logger.error("jobs %s may still run: scancel: %s", ", ".join(chosen), done.stderr.strip())

    def find(self, key: str) -> str | None:
        try:
            # One's own alone: comments can be read by all, so anybody could submit a job with ours.
            done = _call(["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%F|%k"])
        except FileNotFoundError:
            raise QueueError("squeue: there is no such program on this machine") from None
        if done.returncode != 0:
            raise QueueError(f"squeue: {done.stderr.strip() or done.returncode}")
        rows = (line.partition("|") for line in done.stdout.splitlines())
        return next((job.strip() for job, _, comment in rows if comment.strip() == key), None)


def state_of(name: str, reason: str) -> JobState:
    """From squeue's state and reason."""
    reason = "" if reason in ("None", "NonZeroExitCode") else reason
    if name in _HELD or (name == "PENDING" and _HELD_REASONS.search(reason)):
        return JobState("held", name, reason, bool(_LAUNCH_FAILED.search(reason)))
    if name in _WAITING:
        return JobState("waiting", name, reason)
    return JobState("running", name) if name in _RUNNING else JobState("ended", name, reason, name in _AGAIN)


def outside_of_a_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of the job that this process may itself run in: they would be taken for wishes of the new
    one, and srun would wait for ever for a step's place in a job whose place this process has."""
    return {key: value for key, value in environment.items() if key == "SLURM_CONF" or not key.startswith("SLURM_")}


def _call(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    # Messages are compared: in English.
    whole = {**outside_of_a_job(os.environ if environment is None else environment), "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=whole,
            timeout=CALL_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C is for us, who then cancel what was submitted
        )
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} gave no answer within {CALL_SECONDS:.0f} s") from None
