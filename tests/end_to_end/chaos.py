"""Random schedules of faults against the whole daemon: python tests/end_to_end/chaos.py --schedules 1000 --seed 0

What counts as one schedule: a work directory, a configuration, and a training run of its own; one to three lives of the
daemon, each with at least one fault that ends or disturbs it or a process that it has started, while the training run
writes its checkpoints; then a last life without any fault, to the end, and all checks of ``chaos_checks``. A schedule
follows from its seed, up to the moments at which processes happen to run.

Faults: SIGKILL, SIGTERM, SIGINT, SIGHUP and SIGSTOP with a later SIGCONT to the daemon, its worker, its views, its
publisher, the process that looks up the tasks, at the n-th operation on files that it does or at any moment; a second
daemon on the same work directory; a W&B imitation that is down, answers with errors, loses answers, delivers twice; a disk
without room (a tmpfs of its own); in a quarter of the schedules clocks that jump by minutes to days (libfaketime for
every process; where it is not installed Python's ``time.time`` alone). Checkpoints come partial, late, deleted, saved again, with a torn tracker, by a machine
whose clock is behind.

Everything is real but the way in which processes come to be (``chaos_processes``), the training run (real checkpoints
of tiny models, copied file by file) and W&B's server (``tests/recorder/wandb_server.py``). The scores that must come out
are those of a daemon that nothing disturbs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
if str(Path(__file__).resolve().parents[1] / "recorder") not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "recorder"))

from tests.end_to_end.chaos_processes import HOME, has_faketime, preload, preload_environment
from tests.end_to_end.chaos_schedule import Lane, Result, Schedule, jumps
from tests.end_to_end.chaos_world import World, make_world
from tests.end_to_end.forked_programs import why_not

RESULT = "RESULT "


def run_schedules(home: Path, seeds: Sequence[int], jobs: int, *, keep: bool = False) -> Iterator[Result]:
    """Results as they come. The world is made in ``home``, unless it is there. ``keep`` leaves the directories of what
    went wrong, below ``home``."""
    jumping = [seed for seed in seeds if jumps(seed)]
    steady = [seed for seed in seeds if not jumps(seed)]
    slower = max(1, jobs // 3)  # a quarter of the schedules jumps, and takes half as long again
    with contextlib.ExitStack() as stack:
        roots = [
            stack.enter_context(_root(home, mine, at_once, keep, faketime))
            for mine, at_once, faketime in ((steady, max(1, jobs - slower), False), (jumping, slower, True))
            if mine
        ]
        results: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for root in roots:
            threading.Thread(target=_read, args=(root, results), daemon=True).start()
        for _ in roots:
            while (line := results.get()) is not None:
                if line.startswith(RESULT):
                    content = json.loads(line.removeprefix(RESULT))
                    for name in ("faults", "kinds"):
                        content[name] = Counter(content[name])
                    yield Result(**content)
        if any(root.wait() != 0 for root in roots):
            raise RuntimeError(f"the processes of the schedules ended with {[root.returncode for root in roots]}")


@contextlib.contextmanager
def _root(home: Path, seeds: Sequence[int], jobs: int, keep: bool, faketime: bool) -> Iterator[subprocess.Popen[str]]:
    order = json.dumps([str(home), list(seeds), min(jobs, len(seeds)), keep])
    environment = preload_environment(faketime=faketime)
    command = [sys.executable, __file__, "--root", order]
    with subprocess.Popen(
        command, cwd=HOME, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as root:
        try:
            yield root
        finally:
            if root.poll() is None:  # whoever asked has had enough
                with contextlib.suppress(psutil.Error):
                    for one in [*psutil.Process(root.pid).children(recursive=True), root]:
                        one.kill()


def _read(root: subprocess.Popen[str], results: queue.SimpleQueue[str | None]) -> None:
    assert root.stdout is not None
    for line in root.stdout:
        results.put(line)
    results.put(None)


def _be_root(home: Path, seeds: Sequence[int], jobs: int, keep: bool) -> int:
    """Imports all, once, and is forked into one that makes the world and ``jobs`` lanes."""
    preload()
    with (home / "making.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "world.pickle").exists() and _wait_for([_forked(partial(_make_world, home))]) != 0:
            return 1
    world: World = pickle.loads((home / "world.pickle").read_bytes())  # noqa: S301 - written by the line before
    name = "jumping" if has_faketime() else "lane"
    lanes = [(home / f"{name}-{number}", seeds[number::jobs]) for number in range(jobs)]
    return _wait_for([_forked(partial(_work, world, place, mine, keep)) for place, mine in lanes])


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _wait_for(pids: Sequence[int]) -> int:
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)


def _make_world(home: Path) -> None:
    with contextlib.closing(Lane(home / "making")) as lane:
        world = make_world(home, lane.run)
    (home / "world.pickle").write_bytes(pickle.dumps(world))


def _work(world: World, place: Path, seeds: Sequence[int], keep: bool) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.closing(Lane(place)) as lane:
        for seed in seeds:
            schedule = Schedule(seed, world, lane)
            result = schedule.run()
            if not (keep and result.wrong):
                shutil.rmtree(schedule.directory, ignore_errors=True)
                shutil.rmtree(schedule.out, ignore_errors=True)
            os.write(1, f"{RESULT}{json.dumps(vars(result))}\n".encode())


def replay(seed: int) -> str:
    return f"python tests/end_to_end/chaos.py --schedules 1 --seed {seed} --keep"


def told(result: Result) -> str:
    """What went wrong, and how to see it again."""
    return "\n".join(
        [f"seed {result.seed}: {problem}" for problem in result.wrong] + [f"  again: {replay(result.seed)}"]
    )


def summary(results: Sequence[Result]) -> str:
    wrong = sorted(result.seed for result in results if result.wrong)
    faults = sum((result.faults for result in results), Counter[str]())
    kinds = sum((result.kinds for result in results), Counter[str]())
    saves = sum(result.saves for result in results)
    return (
        f"{len(results)} schedules, {len(wrong)} wrong {wrong}; {saves} whole saves\n"
        f"faults: {dict(sorted(faults.items()))}\ncheckpoints: {dict(sorted(kinds.items()))}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Random schedules of faults against the daemon.")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the next ones follow")
    parser.add_argument("--jobs", type=int, default=6, help="schedules at once")
    parser.add_argument("--keep", action="store_true", help="leave the directories of those that went wrong")
    parser.add_argument("--world", type=Path, metavar="DIR", help="where the models are made, and found the next time")
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root:
        home, seeds, jobs, keep = json.loads(options.root)
        return _be_root(Path(home), seeds, jobs, keep)
    if (reason := why_not()) is not None:
        parser.error(reason)
    home = options.world or Path(tempfile.mkdtemp(prefix="chaos-"))
    home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results = []
    seeds = range(options.seed, options.seed + options.schedules)
    for result in run_schedules(home, seeds, min(options.jobs, options.schedules), keep=options.keep):
        results.append(result)
        if result.wrong:
            print(told(result), flush=True)
    print(f"{summary(results)}; {time.monotonic() - began:.0f} s")
    wrong = any(result.wrong for result in results)
    if options.world is None and not (wrong and options.keep):
        shutil.rmtree(home, ignore_errors=True)
    elif wrong and options.keep:
        print(f"kept: {home}")
    return 1 if wrong else 0


if __name__ == "__main__":
    from tests.end_to_end import chaos  # under the name that pickles know

    sys.exit(chaos.main())
