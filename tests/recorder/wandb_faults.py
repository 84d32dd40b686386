"""Random schedules of faults: checkpoints come in any order, the publisher is killed, the server fails in many ways.

A schedule follows from its seed, up to the moments at which processes happen to run. After each, without faults, W&B's
history must equal the ledger. More than the test runs, by hand:

    python tests/recorder/wandb_faults.py --schedules 2000 --first-seed 1000 --jobs 4

The publisher is the real one with the real client, each attempt in a process of its own, forked from one that has
imported all that is needed (``_Zygote``), so that an attempt costs a tenth of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from wandb_answers import KEY
from wandb_server import Fault, Imitation
from wandb_world import World, doubled

from tests.preloaded import PUBLISHER

STATUSES = (400, 404, 429, 500, 503)
DONE, PENDING = 0, 3


class _Zygote:
    """A process with one thread that forks a publisher on demand. Publishers are killed by their id."""

    def __init__(self, home: Path):
        ask, self._asks = os.pipe()
        self._answers, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._asks)
            os.close(self._answers)
            os.environ.update(HOME=str(home), WANDB_API_KEY=KEY, WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
            _serve(os.fdopen(ask), answer)
        os.close(ask)
        os.close(answer)
        self._lines = os.fdopen(self._answers)

    def begin(self, work_dir: Path, everything: bool, verify: bool, patience: float) -> int:
        """The id of a new publisher, whose client waits for so many seconds."""
        os.write(self._asks, (json.dumps([str(work_dir), everything, verify, patience]) + "\n").encode())
        return int(self._lines.readline())

    def end(self) -> int:
        """How the publisher ended: its exit status, negative for a signal."""
        return int(self._lines.readline())

    def close(self) -> None:
        os.close(self._asks)
        os.waitpid(self._pid, 0)


def _serve(asked: Any, answer: int) -> None:
    for line in asked:
        work_dir, everything, verify, patience = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _publish(Path(work_dir), everything, verify, patience)
        os.write(answer, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _outcome(work_dir: Path, settings: Any, everything: bool, verify: bool) -> Any:
    from recorder.ledger import Ledger
    from recorder.publishing import publisher_lock
    from recorder.refresh import publish_to_wandb
    from recorder.wandb_publisher import Publisher

    if everything:
        return publish_to_wandb(work_dir / "ledger.sqlite", settings, at_once=True, verify=verify)
    with publisher_lock(work_dir), contextlib.closing(Ledger(work_dir / "ledger.sqlite")) as ledger:
        return Publisher(ledger, work_dir, settings.wandb, verify=verify).publish_checkpoints()


def _publish(work_dir: Path, everything: bool, verify: bool, patience: float) -> None:
    from recorder import publishing, refresh, wandb_client, wandb_delivery, watchdog

    code = 4
    try:
        sys.stderr = (work_dir / "publisher.log").open("a")
        os.dup2(sys.stderr.fileno(), 2)
        sys.__stderr__ = sys.stderr  # where the watchdog writes
        wandb_client.INIT_SECONDS = wandb_client.FINISH_SECONDS = patience
        watchdog.STEP_SECONDS, publishing.LOCK_SECONDS = 10 * patience, 60.0
        wandb_delivery.SERVER_SHOWS_AFTER = (0.0, 0.05, 0.2)
        settings = refresh.read_settings(work_dir / "settings.json")
        with watchdog.watched():
            outcome = _outcome(work_dir, settings, everything, verify)
        print(time.time(), outcome, file=sys.stderr, flush=True)
        code = DONE if outcome.error is None else PENDING
    except BaseException as error:
        print(time.time(), repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


@dataclass
class Result:
    seed: int
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    twice: int = 0  # (iteration, metric) that stand in the history more than once
    attempts: int = 0


class _Schedule:
    def __init__(self, seed: int, zygote: _Zygote, directory: Path):
        self.random = random.Random(seed)
        self.result = Result(seed)
        self.zygote = zygote
        self.everything = seed % 11 == 0  # leaderboard and report too
        self.server = Imitation()
        self.world = World(directory, self.server.url)
        self.may_repeat = False  # a stale reading shows less than there is; a save again is another value
        self.pid = 0
        self.deleted = False

    def run(self) -> Result:
        with self.server:
            checkpoints = [
                (model, 1000 * (n + 1)) for model in ("gpt", "llama")[: self._one_to(2)] for n in range(self._one_to(4))
            ]
            self.random.shuffle(checkpoints)
            for model, iteration in checkpoints:
                self._evaluate(model, iteration)
                if self.random.random() < 0.1:
                    self._evaluate(model, iteration)  # delivered two times, or saved again
                if self.random.random() < 0.5:
                    self._attempt()
            self._attempt()
            self._attempt_without_faults()
            backend = self.server.backend
            self.result.wrong += self.world.shown_wrongly(backend.runs.values())
            self.result.wrong += [f"unhandled: {asked}" for asked in backend.unhandled]
            if pending := self.world.pending():
                self.result.wrong.append(f"{pending} entries of the outbox are pending")
            self.result.twice = sum(len(doubled(run)) for run in backend.runs.values())
            if self.result.twice and not self.may_repeat:
                self.result.wrong.append(f"{self.result.twice} values were sent twice")
        return self.result

    def _one_to(self, most: int) -> int:
        return self.random.randint(1, most)

    def _evaluate(self, model: str, iteration: int) -> None:
        known = any(at == iteration for at, _ in self.world.expected.get(model, {}))
        save = f"save-{iteration}"
        if known and self.random.random() < 0.5:
            save += "-again"
            self.may_repeat = True
            self.world.expected[model] = {k: v for k, v in self.world.expected[model].items() if k[0] != iteration}
        elif known:
            values = {
                k[1].removesuffix(".acc"): v
                for k, v in self.world.expected[model].items()
                if k[0] == iteration and k[1].endswith(".acc")
            }
            self.world.evaluated(model, iteration, values, save=save)
            return
        values = {task: round(self.random.random(), 6) for task in ("mmlu", "arc")}
        self.world.evaluated(model, iteration, values, save=save)

    # Attempts

    def _attempt(self) -> None:
        name = self.random.choices(
            ("kill", "status", "drop", "lost", "twice", "down", "stale", "delete", "nothing"),
            (6, 6, 2, 3, 2, 1, 2, 1, 1),
        )[0]
        self.result.faults[name] += 1
        getattr(self, f"_set_{name}")()
        self._publish()
        self.server.fault = lambda channel, count: None
        self.server.backend.stale_reads = 0

    def _publish(self, verify: bool = False, patience: float = 4.0) -> int:
        self.result.attempts += 1
        self.pid = self.zygote.begin(self.world.path, self.everything, verify, patience)
        return self.zygote.end()

    def _attempt_without_faults(self) -> None:
        """The first may find out that a former attempt's rows are not there. A run that was deleted when nothing was
        due any more is noticed by who looks at everything, as ``--sync-wandb`` does. With the patience that publishers
        have: on a busy machine less would be a fault."""
        statuses = [self._publish(patience=30.0) for _ in range(2)]
        if self.deleted:
            statuses.append(self._publish(verify=True, patience=30.0))
        if statuses[-1] != DONE:
            log = (self.world.path / "publisher.log").read_text().splitlines()
            self.result.wrong.append(f"the last attempts ended with {statuses}: {log[-2:]}")

    def _first(self, most: int, fault: Fault, channels: Sequence[str] = ("",)) -> None:
        """``fault`` at one to ``most`` requests of a channel, after some that go well."""
        channel, left, skip = self.random.choice(channels), [self._one_to(most)], [self.random.randint(0, 2)]

        def decide(asked: str, _: int) -> Fault:
            if not asked.startswith(channel) or left[0] == 0:
                return None
            if skip[0]:
                skip[0] -= 1
                return None
            left[0] -= 1
            return fault

        self.server.fault = decide

    def _set_kill(self) -> None:
        """At some request, before it is taken or after."""
        left, taken = [self.random.randint(0, 24)], self.random.random() < 0.5

        def decide(_: str, __: int) -> Fault:
            left[0] -= 1
            if left[0] != -1:
                return None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return None if taken else "drop"

        self.server.fault = decide

    def _set_status(self) -> None:
        self._first(2, self.random.choice(STATUSES), ("stream", "stream", "graphql:UpsertBucket", "graphql", "upload"))

    def _set_drop(self) -> None:
        self._first(1, "drop", ("stream", "graphql"))

    def _set_lost(self) -> None:
        self._first(1, "lost", ("stream", "graphql:UpsertBucket"))

    def _set_twice(self) -> None:
        self._first(9, "twice")

    def _set_down(self) -> None:
        self.server.fault = lambda channel, count: "drop"

    def _set_stale(self) -> None:
        self.server.backend.stale_reads = self._one_to(4)
        self.may_repeat = True

    def _set_delete(self) -> None:
        runs = self.server.backend.runs
        if runs:
            key = self.random.choice(sorted(runs))
            del runs[key]
            self.deleted = True
            self.server.backend.deleted.add(key)

    def _set_nothing(self) -> None:
        """A quiet moment."""


def _import() -> None:
    for name in PUBLISHER:
        importlib.import_module(name)
    gc.freeze()  # no process that is forked from this one looks through all of it again


def run_schedules(seeds: Sequence[int]) -> Iterator[Result]:
    """Each schedule has its own work directory and server; one zygote serves all."""
    _import()
    home = Path(tempfile.mkdtemp(prefix="wandb-faults-"))
    zygote = _Zygote(home)
    try:
        for seed in seeds:
            directory = home / f"seed-{seed}"
            yield _Schedule(seed, zygote, directory).run()
            shutil.rmtree(directory, ignore_errors=True)
    finally:
        zygote.close()
        shutil.rmtree(home, ignore_errors=True)


def _run_all(seeds: Sequence[int]) -> list[Result]:
    results = []
    for result in run_schedules(seeds):
        results.append(result)
        for problem in result.wrong:
            print(f"seed {result.seed}: {problem}", flush=True)
    return results


def in_parallel(seeds: Sequence[int], jobs: int) -> list[Result]:
    """Attempts wait more than they compute, so several schedules at once are worth it even on two cores."""
    shares = [list(seeds[start::jobs]) for start in range(jobs)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_forked, shares).result()


def _forked(shares: Sequence[Sequence[int]]) -> list[Result]:
    """In a process with one thread: each share has a process of its own, in which all is imported already."""
    _import()
    with multiprocessing.get_context("fork").Pool(len(shares)) as pool:
        return [result for results in pool.map(_run_all, shares, chunksize=1) for result in results]


def main() -> int:
    parser = argparse.ArgumentParser(description="Random schedules of faults against the W&B publisher.")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    begun = time.monotonic()
    results = in_parallel(range(options.first_seed, options.first_seed + options.schedules), options.jobs)
    wrong = sum(bool(result.wrong) for result in results)
    faults = sum((result.faults for result in results), Counter[str]())
    attempts, twice = sum(r.attempts for r in results), sum(r.twice for r in results)
    print(f"{len(results)} schedules, {attempts} attempts, {wrong} wrong, {twice} values in the history twice")
    print(f"faults: {dict(faults)}; {time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
