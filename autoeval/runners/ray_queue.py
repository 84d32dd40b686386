"""Ray: each task in an actor of its own, on whatever node of the cluster has the GPUs it wants.

Actors are detached and have our key for a name, so that they outlive the process that made them and are found again.
What an actor runs is the same command as on Slurm, so one actor has one loaded model and a lost node costs one try.
See docs.ray.io, "Named Actors" and "Actor Lifetimes".
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.runners.jobs import JobArray, JobState, QueueError, QueueRefused, passed_on
from autoeval.tasks import ENDS_WITH_INPUT

logger = logging.getLogger(__name__)

NAMESPACE = "autoeval"
ANSWER_SECONDS = 1.0  # an actor that has started answers at once
STOP_SECONDS = 3.0  # between SIGTERM and the end of the actor


class _Running:
    """Lives on a node. Its command runs in a thread, so that it can be asked meanwhile."""

    def __init__(self, command: Sequence[str], directory: str, environment: Mapping[str, str]) -> None:
        self._code: int | None = None
        self._ended = threading.Event()
        # Ray has set CUDA_VISIBLE_DEVICES in this process.
        whole = {**os.environ, **environment, ENDS_WITH_INPUT: "1"}
        # The input is a pipe that nobody writes: it closes when this actor is gone, whatever ended it.
        self._process = subprocess.Popen(
            list(command), cwd=directory, env=whole, stdin=subprocess.PIPE, start_new_session=True
        )
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self._code = self._process.wait()
        self._ended.set()

    def code(self) -> int | None:
        return self._code

    def stop(self, seconds: float) -> None:
        """Ask it to end and give it time: when this actor is killed, Ray kills the command with it, and what that has
        started would be left with nobody to end it but itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._ended.wait(seconds)


class RayQueue:
    """The cluster at ``address`` (``auto``: the one that ``RAY_ADDRESS`` or this machine names).

    Raises ``QueueRefused`` when the package is not there, ``QueueError`` when the cluster is not.
    """

    arrays = False

    def __init__(self, address: str = "auto") -> None:
        try:
            import ray
        except ImportError as error:
            raise QueueRefused(
                f"Ray needs its package: pip install ray==2.60.0, as on the cluster ({error})"
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError) as error:
                raise QueueError(f"Ray at {address}: {error}") from error
        self._stopped: set[str] = set()
        self._told: set[str] = set()
        self._wanted: dict[str, tuple[int, int]] = {}  # GPUs and CPUs

    def submit(self, array: JobArray) -> str:
        if array.size != 1:
            raise ValueError(f"a Ray actor has one task, not {array.size}")
        wanted = array.resources
        self._wanted[array.key] = (wanted.num_gpus, wanted.num_cpus or 1)
        memory = None if wanted.memory_gb is None else int(wanted.memory_gb * 2**30)
        actor = self._ray.remote(_Running).options(
            name=array.key,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,  # an answer that was lost
            num_cpus=wanted.num_cpus or 1,
            num_gpus=wanted.num_gpus,
            memory=memory,
            max_restarts=0,  # another try is for the runner to decide
            runtime_env={"env_vars": {"PYTHONPATH": passed_on()["PYTHONPATH"]}},
        )
        actor.remote([*array.command, "0"], str(Path.cwd()), {**passed_on(), **array.environment})
        return array.key

    def _why_waiting(self, job: str) -> str:
        """No room now, or no node that could ever hold it; which an autoscaler may still bring."""
        gpus, cpus = self._wanted.get(job, (0, 0))
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
            return "no node has room"
        if job not in self._told:
            self._told.add(job)
            most = max((node.get("GPU", 0) for node in nodes), default=0)
            logger.warning(
                "%s waits: no node has %d GPUs and %d CPUs (the most GPUs on one are %g)", job, gpus, cpus, most
            )
        return f"no node has {gpus} GPUs and {cpus} CPUs"

    def poll(self, jobs: Mapping[str, int]) -> dict[str, list[JobState]]:
        ray = self._ray
        states: dict[str, list[JobState]] = {}
        asked = {}
        for job in jobs:
            try:
                actor = ray.get_actor(job, namespace=NAMESPACE)
                asked[job] = (actor, actor.code.remote())
            except ValueError:
                stopped = job in self._stopped
                states[job] = [JobState("ended", "CANCELLED") if stopped else JobState("gone", again=True)]
            except (ConnectionError, RuntimeError) as error:
                states[job] = [JobState("unknown", reason=f"Ray does not answer: {error}")]
        answers = [answer for _, answer in asked.values()]
        if answers:  # all of them at once: those that still wait for a node are silent
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
        return states | {job: [self._state(job, actor, answer)] for job, (actor, answer) in asked.items()}

    def _state(self, job: str, actor: Any, answer: Any) -> JobState:
        ray = self._ray
        try:
            code = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            return JobState("waiting", "PENDING_CREATION", self._why_waiting(job))
        except ray.exceptions.ActorUnavailableError as error:  # its node may come back
            return JobState("unknown", reason=f"Ray: {str(error).splitlines()[0]}")
        except ray.exceptions.RayActorError as error:
            if job in self._stopped:
                return JobState("ended", "CANCELLED")
            return JobState("ended", "NODE_FAIL", str(error).splitlines()[0], again=True)
        except ray.exceptions.RayError as error:
            return JobState("unknown", reason=f"Ray: {error}")
        if code is None:
            return JobState("running", "RUNNING")
        ray.kill(actor)  # it has nothing more to say: its GPUs are free for the next
        return JobState("ended", "FAILED" if code else "COMPLETED", again=True)

    def cancel(self, jobs: Iterable[str]) -> None:
        ray = self._ray
        actors, ends = [], []
        for job in jobs:
            job = job.removesuffix("_0")
            self._stopped.add(job)
            try:
                actors.append(ray.get_actor(job, namespace=NAMESPACE))
                ends.append(actors[-1].stop.remote(STOP_SECONDS))
            except ValueError:
                pass  # it is over
            except (ConnectionError, RuntimeError) as error:
                logger.error("%s may still run: %s", job, error)
        with contextlib.suppress(ray.exceptions.RayError):
            if ends:  # all at once; one that has not begun does not answer
                ray.wait(ends, num_returns=len(ends), timeout=STOP_SECONDS)
        for actor in actors:
            ray.kill(actor)

    def told(self, log: str) -> str | None:
        del log
        return None

    def find(self, key: str) -> str | None:
        try:
            self._ray.get_actor(key, namespace=NAMESPACE)
        except ValueError:
            return None
        except (ConnectionError, RuntimeError) as error:
            raise QueueError(f"Ray does not answer: {error}") from error
        return key
