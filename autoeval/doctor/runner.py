"""The configured runner, tried with a real job: ``autoeval.doctor.probe`` runs where the work will run, and answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoeval.doctor.finding import Finding, ok, problem, warning
from autoeval.doctor.probe import HOME, digest
from autoeval.runner_sections import RunnerSection
from autoeval.runners import queue_from, resources_from
from autoeval.runners.jobs import JobArray, JobState, Queue, QueueError
from autoeval.runners.worker_process import worker_environment

POLL_SECONDS = 0.5
UNANSWERED_SECONDS = 15.0  # for the answer of a job that has ended to appear on a network file system
CANCEL_SECONDS = 30.0
SKEW_SECONDS = 5.0
_CLEAR = "an answer of the probe job"


def examine_runner(
    check: str,
    section: RunnerSection,
    work_dir: Path,
    checkpoint_path: Path,
    newest: Path | None,
    patience_seconds: float,
) -> Iterator[Finding]:
    """Submit a probe to the runner of ``section`` and judge its answer; it is cancelled and cleared away whatever
    happens. ``newest`` is a file of the newest checkpoint. A job that is still pending after ``patience_seconds`` is a
    warning: the cluster may just be busy."""
    check = f"{check} ({section.type})"
    try:
        place = Path(tempfile.mkdtemp(dir=work_dir, prefix=".doctor-probe-"))
    except OSError as error:
        yield problem(check, f"not tried: {work_dir}: {error.strerror}", "a work directory", "mend work_dir first")
        return
    try:
        request = {
            "answer": str(place / "answer.json"),
            "work_dir": str(work_dir),
            "checkpoint_path": str(checkpoint_path),
            "newest": None if newest is None else str(newest),
        }
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        if section.type == "local":
            yield from _on_this_machine(check, section, place, patience_seconds)
        else:
            yield from _through_the_queue(check, section, place, patience_seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _on_this_machine(check: str, section: RunnerSection, place: Path, patience: float) -> Iterator[Finding]:
    command = [sys.executable, "-m", "autoeval.doctor.probe", str(place / "request.json"), "0"]
    try:
        done = subprocess.run(
            command, cwd=HOME, env=worker_environment(), capture_output=True, text=True, timeout=patience, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield problem(
            check, f"a process like the worker did not answer: {error}", _CLEAR, "look at this machine's load"
        )
        return
    yield from _judged(check, section, place, _last_lines(done.stderr))


def _through_the_queue(check: str, section: RunnerSection, place: Path, patience: float) -> Iterator[Finding]:
    options = section.options()
    array = JobArray(
        key=f"autoeval-{uuid.uuid4().hex}",
        name="autoeval-doctor",
        command=[sys.executable, "-m", "autoeval.doctor.probe", str(place / "request.json")],
        size=1,
        resources=resources_from(options),
        log=place / "probe.log",
    )
    queue: Queue | None = None
    try:
        queue = queue_from(options)
        job = queue.submit(array)
    except QueueError as error:
        with contextlib.suppress(QueueError):  # it may have been taken, and only the answer was lost
            if queue is not None and (taken := queue.find(array.key)) is not None:
                queue.cancel([taken])
        action = f"see that the {section.type} cluster is up and can be reached from this machine"
        yield problem(check, f"does not answer: {error}", "a cluster that takes jobs", action)
        return
    except ValueError as error:  # QueueRefused too
        yield problem(check, f"takes no such job: {error}", "a job with these resources", "correct section runner")
        return
    try:
        state, waited = _awaited(queue, job, place / "answer.json", patience)
    finally:
        left = _cancelled(queue, job)
    if left:
        yield warning(check, f"job {job} could not be cancelled", "no job left behind", "cancel it yourself")
    logs = (array.task_log(0), array.log)
    yield from _told(check, section, place, state, waited, _last_lines("\n".join(map(_read, logs))), f"job {job}")


def _awaited(queue: Queue, job: str, answer: Path, patience: float) -> tuple[JobState, float]:
    """The job's last state and how long it was waited for; returns when it has answered, ended, or time is up."""
    began, ended_at = time.monotonic(), None
    while True:
        state = queue.poll({job: 1})[job][0]
        now = time.monotonic()
        ended_at = (ended_at or now) if state.over else None
        late = ended_at is not None and now - ended_at > UNANSWERED_SECONDS
        if answer.exists() or late or state.kind == "held" or now - began > patience:
            return state, now - began
        time.sleep(POLL_SECONDS)


def _cancelled(queue: Queue, job: str) -> bool:
    """Ask for the job's end and wait for it; whether it is still there."""
    queue.cancel([job])
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        if queue.poll({job: 1})[job][0].over:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _told(
    check: str, section: RunnerSection, place: Path, state: JobState, waited: float, log: str, job: str
) -> Iterator[Finding]:
    what = " ".join(filter(None, (state.name, f"({state.reason})" if state.reason else "")))
    if (place / "answer.json").exists():
        yield from _judged(check, section, place, log, f"{job} answered after {waited:.0f} s")
    elif state.kind == "waiting":
        found = f"{job} was still waiting after {waited:.0f} s: {what}"
        action = "wait until the cluster has room, ask for less, or give --probe-seconds more"
        yield warning(check, found, "a job that starts within that time", action)
    elif state.kind == "held":
        action = "correct partition, account, qos or what the job asks for: it would wait for ever"
        yield problem(check, f"{job} is held: {what}", "a job that may start", action)
    elif state.kind == "unknown":
        yield problem(check, f"{job}: {state.reason}", "a cluster that answers", "look at the cluster's controller")
    elif state.kind == "running":
        found = f"{job} runs, but has not answered within {waited:.0f} s{log}"
        yield problem(check, found, _CLEAR, "its machine may not see work_dir, or be very slow: --probe-seconds")
    else:
        action = f"its machine must see {HOME}, {place.parent} and {sys.executable} under these very paths"
        yield problem(check, f"{job} ended without an answer: {what}{log}", _CLEAR, action)


def _judged(check: str, section: RunnerSection, place: Path, log: str, how: str = "a process") -> Iterator[Finding]:
    try:
        answer: dict[str, Any] = json.loads((place / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        yield problem(check, f"{how} ended without an answer{log}", _CLEAR, "see what it said")
        return
    gpus = f"{len(answer['cuda'])} GPUs ({answer['cuda'][0]})" if answer["cuda"] else "no GPU"
    told = f"{how} on {answer['host']} as {answer['user']}: Python {answer['version']} ({answer['python']})"
    yield ok(check, f"{told}, torch {answer['torch']}, {gpus}")
    shared = "mount it there under the same path"
    for key, what, action in (
        ("work_dir", "a work directory that the job can write", shared),
        ("checkpoints", "a checkpoint directory that the job can read", shared),
        ("newest", "a checkpoint that the job can read", "chmod or chown its files, or run as the user that trains"),
    ):
        if answer[key] is not None:
            found = f"on {answer['host']}: {answer[key]}"
            level = warning if key == "checkpoints" and "No such file" in answer[key] and _missing_here(answer[key]) else problem  # fmt: skip
            yield level(check, found, what, action)
    if answer["torch_error"] is not None:
        yield problem(
            check, f"on {answer['host']}: torch: {answer['torch_error']}", "torch", "use this very environment"
        )
    if section.type != "local" and answer["digest"] != digest(HOME):
        found = f"on {answer['host']} {answer['repository']} has other sources than here"
        yield problem(check, found, "the same version of autoeval", "mount or copy this repository there")
    wanted = getattr(section, "num_gpus", None) or 0
    if section.type != "local" and len(answer["cuda"]) < wanted:
        found = f"{wanted} GPUs were asked for, torch on {answer['host']} sees {len(answer['cuda'])}"
        found += f" (CUDA_VISIBLE_DEVICES={answer['gpus']})" if answer["gpus"] else ""
        yield problem(check, found, f"{wanted} GPUs", "torch with CUDA there; the GPU's resource name (runner.gres)")
    asked = (place / "request.json").stat().st_mtime
    ahead, behind = answer["time"] - time.time(), asked - answer["time"]
    if max(ahead, behind) > SKEW_SECONDS:  # it answered between the two
        found = f"the clock of {answer['host']} is {max(ahead, behind):.0f} s {'ahead' if ahead > 0 else 'behind'}, at least"
        yield warning(check, found, "the same time", "set the clocks (chrony or NTP)")


def _missing_here(told: str) -> bool:
    """Whether a directory that the job did not find is not there on this machine either: not the job's fault."""
    return not Path(told.rpartition(":")[0]).exists()


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _last_lines(text: str, count: int = 4) -> str:
    lines = [line for line in text.splitlines() if line.strip()][-count:]
    return f"\nit said: {' | '.join(lines)}" if lines else ""
