"""The proof that an evaluation needs no network: the newest checkpoint is really evaluated where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoeval.checkpoints import Checkpoint, CheckpointChanged, CheckpointVanished, pinned
from autoeval.config import AutoEval
from autoeval.doctor.finding import Finding, ok, problem, warning
from autoeval.location import Url
from autoeval.offline.watched import (
    Attempt,
    attempts,
    guard_environment,
    guarded_processes,
    namespace_command,
    unroutable,
)
from autoeval.planning import WatchOptions, evaluation_plan, make_watcher, task_plan
from autoeval.runners.worker_process import HOME, WORKER, worker_environment
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan, save_plan
from recorder.results import CheckpointRef

CHECK = "offline"
ITEMS = 4  # of each task: what needs the network needs it for the first already
SILENT_SECONDS = 600.0  # without an event of the worker
_NEEDS = "an evaluation that asks for nothing beyond this machine"


@dataclass
class _Proof:
    """What one worker did: (Unix time, what it was at), tasks done, (task, error) of those that failed."""

    steps: list[tuple[float, str]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    broke_off: str = ""
    unroutable: int | None = None
    pid: int = 0

    def at(self, moment: float) -> str:
        before = [what for began, what in self.steps if began <= moment]
        return before[-1] if before else "the start of the worker"


def prove(config: AutoEval, watch: WatchOptions) -> Iterator[Finding]:
    """Evaluate the newest complete checkpoint, ``ITEMS`` items a task, in a worker that cannot reach the network.

    What is written goes to a directory of its own below ``work_dir``, and is removed. Each attempt is told with the task
    that made it: a warning where the task did without, a problem where it failed.
    """
    if isinstance(getattr(config, watch.model_type).checkpoint_path, Url):
        found = "checkpoints lie in an object store, which is reached by the network"
        action = "copy one to this machine, and prove it with a checkpoint_path that names the copy"
        yield problem(CHECK, found, "a checkpoint on this machine", action)
        return
    newest = max(make_watcher(config, watch).scan().complete, key=lambda one: one.iteration, default=None)
    if newest is None:
        found = "there is no complete checkpoint that is due yet"
        yield problem(CHECK, found, "one to evaluate", "wait for one, or see --doctor why none is complete")
        return
    config.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.work_dir, prefix=".offline-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        log = place / "attempts.jsonl"
        try:
            with pinned(newest, place / "pins") as readable:
                plans = _plans(config, watch, newest, readable, place)
                proof = _evaluate(plans, place, log)
        except (CheckpointChanged, CheckpointVanished) as error:
            yield problem(CHECK, str(error), "a checkpoint that stays", "try again")
            return
        finally:
            _remove_helm_runs(config, watch, place.name)
        yield from _judged(proof, guarded_processes(log), attempts(log), newest, place / "worker.log")


def _plans(
    config: AutoEval, watch: WatchOptions, newest: Checkpoint, readable: Checkpoint, place: Path
) -> list[tuple[str, EvaluationPlan]]:
    """(what it is, plan): one for each entry of icl.datasets, so that reading its data is told apart, one for HELM."""
    whole = task_plan(config, watch.eval_type)
    parts: list[tuple[str, TaskPlan]] = []
    if (icl := whole.icl) is not None:
        limit = min(icl.limit or ITEMS, ITEMS)
        for name in icl.datasets:
            one = IclPlan((name,), icl.data_dir, limit, icl.allow_code_execution)
            parts.append((Path(name).name, TaskPlan(icl=one)))
    if (helm := whole.helm) is not None:
        instances = min(helm.eval_instances, ITEMS)
        few = replace(helm, eval_instances=instances, num_train_trials=1, suite=place.name.lstrip("."))
        parts.append(("HELM's tasks", TaskPlan(helm=few)))
    elsewhere = config.model_copy(update={"work_dir": place})
    ref = CheckpointRef(newest.model, newest.iteration, newest.fingerprint, str(newest.path), newest.tokens)
    plans = [(name, evaluation_plan(elsewhere, tasks, (), ref, readable)) for name, tasks in parts]
    return [(name, replace(plan, together=False)) for name, plan in plans]


def _evaluate(plans: list[tuple[str, EvaluationPlan]], place: Path, log: Path) -> _Proof:
    """Let one worker do ``plans``, one after the other."""
    environment = {**guard_environment(worker_environment(), log), "AUTOEVAL_LOG_LEVEL": "INFO"}
    with (place / "worker.log").open("ab") as stderr:
        process = subprocess.Popen(
            [*namespace_command(), *WORKER],
            cwd=HOME,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
    proof = _Proof(pid=process.pid)
    silence = _Silence(process)
    try:
        for number, (name, plan) in enumerate(plans):
            path = place / f"plan-{number}.json"
            save_plan(path, plan)
            proof.steps.append((time.time(), f"reading the data of {name}"))
            if not _one(process, path, proof, silence):
                proof.broke_off = proof.at(time.time())
                break
        with contextlib.suppress(OSError):
            proof.unroutable = unroutable(process.pid) if namespace_command() else None
    finally:
        silence.end()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return proof


def _one(process: subprocess.Popen[str], plan: Path, proof: _Proof, silence: _Silence) -> bool:
    """Hand over a plan and hear the worker out; whether it lives still."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps({"evaluate": str(plan)}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return False
    for line in process.stdout:
        silence.heard()
        event = json.loads(line)
        if (ended := _heard(event, proof)) is not None:
            return ended
    return False


def _heard(event: dict[str, Any], proof: _Proof) -> bool | None:
    """Note an event; ``True`` when it ends the plan."""
    kind, task = event["event"], event.get("task", "")
    step = {"converting": "the conversion", "converted": "loading the model", "task_started": f"task {task}"}.get(kind)
    if step is not None:
        proof.steps.append((time.time(), step))
    elif kind == "task_done":
        proof.done.append(task)
    elif kind == "task_failed":
        proof.failed.append((task, event["error"]))
    elif kind in ("checkpoint_failed", "checkpoint_missed"):
        proof.failed.append((proof.at(time.time()), event["error"]))
        return True
    elif kind == "checkpoint_done":
        return True
    return None


class _Silence:
    """Ends a worker that gives no sign of life, so that nobody waits for it for ever."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process, self._last = process, time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        self._last = time.monotonic()

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            if time.monotonic() - self._last > SILENT_SECONDS:
                self._process.kill()
                return


def _remove_helm_runs(config: AutoEval, watch: WatchOptions, name: str) -> None:
    if (helm := task_plan(config, watch.eval_type).helm) is not None:
        shutil.rmtree(Path(helm.output_path) / "runs" / name.lstrip("."), ignore_errors=True)


def _judged(proof: _Proof, guarded: set[int], tried: list[Attempt], newest: Checkpoint, log: Path) -> Iterator[Finding]:
    if proof.pid not in guarded:
        yield problem(
            CHECK, "the guard did not start in the worker", "a guarded worker", "run it with this repository's Python"
        )
    blamed = {task for task, _ in proof.failed}
    named = {one.where for one in tried if one.kind == "request"}  # a proxy is asked for what a request was made for
    told = [one for one in tried if one.kind != "proxy" or one.where not in named]
    for place, attempt in dict.fromkeys((proof.at(one.time), str(one)) for one in told):
        level = problem if {place, place.removeprefix("task ")} & blamed else warning
        action = "put what it asks for on this machine (--doctor names missing files)"
        yield level(CHECK, f"{place} tried the network: {attempt}", _NEEDS, action)
    for task, error in proof.failed:
        yield problem(
            CHECK, f"{task} failed: {error}", "a task that works without network", "see --doctor and the error"
        )
    if proof.broke_off:
        last = " | ".join(_last_lines(log))
        found = f"the worker ended in the middle of {proof.broke_off}: {last}"
        yield problem(CHECK, found, "a worker that comes to its end", "see what it said")
    if proof.unroutable:  # the guard refuses before the kernel hears of it
        found = f"the kernel counted {proof.unroutable} packets without a way out, of a program that is not Python's"
        yield warning(CHECK, found, _NEEDS, "strace -f -e trace=network tells which program it is")
    isolated = bool(namespace_command())
    if not isolated:
        found = "network namespaces are not permitted here: only what Python processes try, and the downloaders that they start, was refused"  # fmt: skip
        action = "run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
        yield warning(CHECK, found, "unshare --net", action)
    if not proof.failed and not proof.broke_off and proof.pid in guarded:
        where = "in a network namespace with nothing but 127.0.0.1" if isolated else "with its sockets refused"
        what = f"{len(proof.done)} task{'s' if len(proof.done) != 1 else ''}, up to {ITEMS} items each"
        attempted = f"{len(tried)} attempts at the network, needed by none" if tried else "no attempt at the network"
        yield ok(CHECK, f"iteration {newest.iteration} was evaluated {where}: {what}; {attempted}")


def _last_lines(log: Path) -> list[str]:
    try:
        return [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
    except OSError:
        return []
