"""Random schedules of faults against the whole daemon: python tests/end_to_end/chaos.py --schedules 1000 --seed 0

What counts as one schedule: a work directory, a configuration, and a training run of its own; one to three lives of the
daemon, each with at least one fault that ends or disturbs it or a process that it has started, while the training run
writes its checkpoints; then a last life without any fault, to the end, and all checks of ``chaos_checks``. A schedule
follows from its seed, up to the moments at which processes happen to run.

Faults: SIGKILL, SIGTERM, SIGINT, SIGHUP and SIGSTOP with a later SIGCONT to the daemon, its worker, its views, its
publisher, the process that looks up the tasks, at the n-th operation on files that it does or at any moment; a second
daemon on the same work directory; a W&B imitation that is down, answers with errors, loses answers, delivers twice; a disk
without room (a tmpfs of its own); clocks that jump by minutes to days (libfaketime for every process; without it
Python's ``time.time`` alone). Checkpoints come partial, late, deleted, saved again, with a torn tracker, by a machine
whose clock is behind.

Everything is real but the way in which processes come to be (``chaos_processes``), the training run (real checkpoints
of tiny models, copied file by file) and W&B's server (``tests/recorder/wandb_server.py``). The scores that must come out
are those of a daemon that nothing disturbs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
sys.path.append(str(Path(__file__).resolve().parents[1] / "recorder"))

import psutil
from wandb_answers import ENTITY, KEY
from wandb_server import Fault, Imitation

from recorder.wandb_rows import run_id
from tests.end_to_end import chaos_checks as checks
from tests.end_to_end.chaos_processes import HELPER, HOME, Family, Zygote, set_clock
from tests.end_to_end.chaos_training import Story, Training, trained

MODEL, PROJECT = "tiny-gpt2", "tiny"
STOPS_WITHIN = 5.0  # seconds from SIGTERM or Ctrl-C to the end of the last process
SLOW = 1.5  # of that, what a busy machine may take longer to give us a processor
LAST_LIFE_SECONDS = 120.0
SIGNALS = ("KILL", "KILL", "KILL", "TERM", "INT", "STOP", "HUP")

CONFIG = """
auto_eval:
  project_name: tiny
  model_name: tiny-gpt2
  work_dir: out
  {section}
  icl: {{datasets: [{home}/two.py], data_dir: .}}
  wandb: {wandb}
  order: {order}
  model: {{verify: never}}
"""
DATASET = """
two_datasets = [
    dict(
        abbr=name,
        type='JsonlDataset',
        path=r'{directory}/items.jsonl',
        reader_cfg=dict(input_columns=['question', 'A', 'B'], output_column='answer'),
        infer_cfg=dict(
            prompt_template=dict(
                type='PromptTemplate',
                template={{'A': start + '{{question}} {{A}}', 'B': start + '{{question}} {{B}}'}},
            ),
            retriever=dict(type='ZeroRetriever'),
            inferencer=dict(type='PPLInferencer'),
        ),
        eval_cfg=dict(evaluator=dict(type='AccEvaluator')),
    )
    for name, start in (('first', ''), ('second', 'So '))
]
"""


@dataclass(frozen=True)
class World:
    """What all schedules share: whole saves by layout and variant, and the scores of each variant, undisturbed."""

    home: Path
    variants: dict[str, dict[str, Path]]  # layout -> variant -> directory
    reference: dict[str, Any]  # layout/variant -> scores


@dataclass
class Result:
    seed: int
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    saves: int = 0
    recorded: int = 0
    seconds: float = 0.0


class Lane:
    """One schedule after the other, with one zygote. In a process of its own, for it adopts all orphans in it."""

    def __init__(self, place: Path, *, jumps: bool = True):
        self.place = place
        self.clock = place / "clock"
        self.zygote = Zygote(self.clock if jumps else None)
        self.family = Family(self.zygote.pid)
        self.disk = place / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        self.zygote.close()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)


class Schedule:
    def __init__(self, seed: int, world: World, lane: Lane):
        self.random = random.Random(seed)
        self.seed, self.world, self.lane = seed, world, lane
        self.result = Result(seed)
        self.small_disk = lane.mounted and self.random.random() < 0.3
        self.megatron = self.random.random() < 0.5
        self.directory = lane.place / f"seed-{seed}"
        self.out = (lane.disk if self.small_disk else self.directory) / f"out-{seed}"
        layouts = [name for name in world.variants if (name == "huggingface") != self.megatron]
        self.layout = self.random.choice(sorted(layouts or world.variants))
        self.megatron = self.layout != "huggingface"
        self.mode = self.random.choices(("online", "offline", "disabled"), (4, 1, 4))[0]
        self.server: Imitation | None = None
        self.count = self.random.randint(2, 4)
        self.told = self.directory / "told"
        self.offset = 0.0
        self.stopped: list[tuple[float, int]] = []  # when to continue whom
        self.seen = 0

    # The schedule

    def run(self) -> Result:
        began = time.monotonic()
        self.directory.mkdir()
        with contextlib.ExitStack() as stack:
            if self.mode == "online":
                self.server = stack.enter_context(Imitation())
            self._configure()
            age = self.random.choice((0.0, 0.0, 0.0, 3600.0))
            training = Training(
                self.directory / "checkpoints",
                self.world.variants[self.layout],
                self.count,
                self.seed,
                megatron=self.megatron,
                age=age,
            )
            try:
                with trained(training):
                    for _ in range(self.random.randint(1, 3)):
                        self._disturbed_life()
                self._last_life()
                self._check(training.story)
            except Exception as error:
                self.result.wrong.append(f"{type(error).__name__}: {error}")
                self._continue_all()
            self.result.kinds.update(training.story.kinds)
            self.result.saves = len(training.story.saves)
        self.result.wrong += self.lane.family.left_after(15.0)
        set_clock(self.lane.clock, 0.0)
        self.result.seconds = time.monotonic() - began
        return self.result

    def _configure(self) -> None:
        megatron = (
            "megatron: {checkpoint_path: checkpoints, tokenizer_type: huggingface, tokenizer_path: "
            f"{self.world.home}/tokenizer, token_per_iteration: 0.001}}"
        )
        section = (
            megatron if self.megatron else "huggingface: {checkpoint_path: checkpoints, token_per_iteration: 0.001}"
        )
        wandb = f"{{mode: {self.mode}, entity: {ENTITY}, base_url: '{self.server.url if self.server else ''}'}}"
        order = self.random.choice(("newest-first", "oldest-first", "bisect"))
        if self.server is None:
            wandb = f"{{mode: {self.mode}}}"
        config = CONFIG.format(section=section, home=self.world.home, wandb=wandb, order=order)
        (self.directory / "evaluator.yaml").write_text(config.replace("work_dir: out", f"work_dir: {self.out}"))

    def _start(self, *flags: str, fates: dict[str, list[Any]] | None = None) -> int:
        arguments = ["--config", str(self.directory / "evaluator.yaml"), "--begin-iteration", "100"]
        arguments += ["--end-iteration", str(100 * self.count), "--iteration-interval", "100"]
        arguments += [
            "--model-type",
            "megatron" if self.megatron else "huggingface",
            "--check-interval",
            "0.01",
            *flags,
        ]
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        environment |= {
            "HOME": str(self.directory),
            "WANDB_API_KEY": KEY,
            "WANDB_SILENT": "true",
            "OMP_NUM_THREADS": "1",
        }
        environment |= {
            "WANDB_ERROR_REPORTING": "false",
            "TOKENIZERS_PARALLELISM": "false",
            **self.lane.zygote.environment,
        }
        console = self.directory / ("status" if "--status" in flags else "console")
        return self.lane.zygote.start(arguments, environment, console, fates or {}, self.told)

    def _await(self, pid: int, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while (code := self.lane.family.code(pid)) is None and time.monotonic() < until:
            self._continue_those_due()
            time.sleep(0.01)
        return code

    # Lives

    def _disturbed_life(self) -> None:
        pid = self._start(fates=self._fates())
        faults = [self.random.choice(self._faults()) for _ in range(self.random.randint(0, 2))]
        for fault in faults:
            if self._await(pid, self.random.random() * 0.8) is not None:
                break
            self.result.faults[fault] += 1
            getattr(self, f"_fault_{fault}")(pid)
        code = self._await(pid, self.random.random() * 2.0)
        if code is None:
            self._end(pid, self.random.choice(("KILL", "KILL", "TERM", "INT")))
        elif code == 2:
            self.result.wrong.append("a life ended with 2: the configuration was right")
        self._continue_all()
        self._make_room()
        if self.server is not None:
            self.server.fault = lambda channel, count: None

    def _end(self, pid: int, name: str) -> None:
        self.result.faults[f"end {name}"] += 1
        self._continue_all()
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, f"SIG{name}"))
        if self._await(pid, 20.0) is None:
            self.result.wrong.append(f"SIG{name} did not end the daemon")
            os.kill(pid, signal.SIGKILL)
            self._await(pid, 5.0)
        elif name != "KILL":
            took = time.monotonic() - began
            if took > STOPS_WITHIN + SLOW:
                self.result.wrong.append(f"SIG{name} took {took:.1f} s")

    def _last_life(self) -> None:
        code = self._await(self._start(), LAST_LIFE_SECONDS)
        if code == 1:  # what faults made fail for good is tried again when a person says so
            self._check_failures()
            self._await(self._start("--retry"), 30.0)
            code = self._await(self._start(), LAST_LIFE_SECONDS)
        if code != 0:
            self.result.wrong.append(f"the last life ended with {code}: {self._tail()}")
        if self.server is not None and (code := self._await(self._start("--sync-wandb"), 60.0)) != 0:
            self.result.wrong.append(f"--sync-wandb ended with {code}: {self._tail()}")

    def _check_failures(self) -> None:
        failed = checks.rows(self.out, "SELECT iteration, error FROM checkpoint_rows WHERE state = 'failed'")
        failed += checks.rows(
            self.out,
            "SELECT c.iteration, t.error FROM task_rows t JOIN checkpoint_rows c ON c.id = t.checkpoint_id "
            "WHERE t.state = 'failed' AND c.state <> 'missed'",
        )
        for iteration, error in failed:
            self.result.faults["failed for good"] += 1
            if not any(text in (error or "") for text in checks.OF_FAULTS):
                self.result.wrong.append(f"iteration {iteration} failed for good: {error}")

    def _check(self, story: Story) -> None:
        reference = {name: self.world.reference[f"{self.layout}/{name}"] for name in self.world.variants[self.layout]}
        self.result.recorded = len(checks.scores_of(self.out))
        self.result.wrong += checks.wrong_in_ledger(self.out, story, reference)
        self.result.wrong += checks.wrong_in_views(self.out, MODEL)
        self.result.wrong += checks.wrong_on_disk(self.out)
        if self.server is not None:
            may_repeat = story.resaved()
            wanted = run_id(PROJECT, MODEL)
            self.result.wrong += checks.wrong_at_wandb(self.server.backend, self.out, wanted, MODEL, may_repeat)
        if story.unfinished:
            (self.directory / "status").unlink(missing_ok=True)
            self._await(self._start("--status", "--json"), 30.0)
            text = (self.directory / "status").read_text()
            self.result.wrong += checks.wrong_in_status(json.loads(text[text.index("[\n") :]), story)
        beat = json.loads((self.out / "heartbeat.json").read_text())
        if beat["state"] != "ended":
            self.result.wrong.append(f"the heartbeat says {beat}")

    def _tail(self) -> str:
        return " | ".join((self.directory / "console").read_text(errors="replace").splitlines()[-6:])

    # Fates and faults

    def _fates(self) -> dict[str, list[Any]]:
        """Mostly one for each life."""
        fates: dict[str, list[Any]] = {}
        most = {"daemon": 150, "lister": 2, "worker": 60, "views": 25, "publisher": 60}
        for role in self.random.sample(("daemon", "daemon", "worker", "worker", "views", "publisher", "lister"), 2):
            if self.random.random() < 0.3:
                continue
            names = ("KILL", "STOP") if role == "lister" else ("KILL", "KILL", "TERM", "STOP")
            fate = (self.random.randint(1, most[role]), self.random.choice(names))
            if role == "worker" and self.random.random() < 0.3:
                fates[role] = [fate, (self.random.randint(1, 30), "KILL")]
            else:
                fates[role] = [None] * self.random.choice((0, 0, 1)) + [fate]
        return fates

    def _faults(self) -> list[str]:
        found = ["signal", "signal", "child", "child", "child", "second", "clock"]
        if self.small_disk:
            found += ["full"] * 5
        if self.server is not None:
            found += ["server"] * 3
        return found

    def _fault_signal(self, pid: int) -> None:
        self._signal(pid, self.random.choice(("STOP", "HUP", "HUP", "CONT")))

    def _fault_child(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            children = [one for one in psutil.Process(pid).children(recursive=True) if one.name() != HELPER]
            if children:
                self._signal(self.random.choice(children).pid, self.random.choice(("KILL", "KILL", "TERM", "STOP")))

    def _fault_second(self, pid: int) -> None:
        second = self._start()
        code = self._await(second, 20.0)
        if self.lane.family.code(pid) is None and code != 2 and self._was_locked(pid):
            self.result.wrong.append(f"a second daemon ended with {code} instead of 2")
            if code is None:
                os.kill(second, signal.SIGKILL)

    def _was_locked(self, pid: int) -> bool:
        """The first may not have come to lock before the second did."""
        try:
            return bool(json.loads((self.out / "daemon.lock").read_text())["pid"] == pid)
        except (OSError, ValueError):
            return False

    def _fault_clock(self, _: int) -> None:
        self.offset += self.random.choice((-86400.0, -3600.0, -61.0, 61.0, 3600.0, 86400.0, 40 * 86400.0))
        set_clock(self.lane.clock, self.offset)

    def _fault_full(self, _: int) -> None:
        leave = self.random.choice((0, 0, 4096, 60_000, 400_000))
        filler = self.lane.disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(self.lane.disk).free - leave))

    def _make_room(self) -> None:
        (self.lane.disk / "filler").unlink(missing_ok=True)

    def _fault_server(self, _: int) -> None:
        assert self.server is not None
        which = self.random.choice((429, 500, 503, 404, "drop", "lost", "twice"))
        channel = self.random.choice(("", "stream", "graphql", "upload"))
        left = [self.random.randint(1, 6)]

        def decide(asked: str, _: int) -> Fault:
            if not asked.startswith(channel) or left[0] <= 0:
                return None
            left[0] -= 1
            return which

        self.server.fault = decide

    def _signal(self, pid: int, name: str) -> None:
        self.result.faults[name] += 1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, getattr(signal, f"SIG{name}"))
            if name == "STOP":
                self.stopped.append((time.monotonic() + self.random.random(), pid))

    def _continue_those_due(self) -> None:
        if self.told.exists():
            lines = self.told.read_text().splitlines()
            for line in lines[self.seen :]:
                role, name, pid = line.split()
                self.result.faults[f"{role} {name}"] += 1
                if name == "STOP":
                    self.stopped.append((time.monotonic() + self.random.random(), int(pid)))
            self.seen = len(lines)
        for due in [one for one in self.stopped if one[0] <= time.monotonic()]:
            self.stopped.remove(due)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(due[1], signal.SIGCONT)

    def _continue_all(self) -> None:
        self._continue_those_due()
        self.stopped = [(0.0, pid) for _, pid in self.stopped]
        self._continue_those_due()


# The world


def make_world(home: Path, *, megatron: Path | None) -> World:
    """Tiny models and their scores, found by a daemon that nothing disturbs. ``megatron``: what ``MEGATRON_SAVES``
    wrote; without it, only Hugging Face checkpoints."""
    from tests.tiny_models import save_tiny_model, save_tiny_tokenizer

    items = [
        {"question": f"{a} + {b} =", "A": str(a + b), "B": str(a - b), "answer": "AB"[a % 2]}
        for a in range(10, 16)
        for b in (1, 3, 4)
    ]
    (home / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (home / "two.py").write_text(DATASET.format(directory=home))
    save_tiny_tokenizer(home / "tokenizer")
    variants: dict[str, dict[str, Path]] = {"huggingface": {}}
    for seed in range(6):
        variants["huggingface"][f"v{seed}"] = save_tiny_model(home / "models" / f"v{seed}", seed=seed)
    if megatron is not None:
        for layout in ("torch_dist", "torch"):
            found = sorted((megatron / layout).glob("iter_0000[123]00"))
            variants[layout] = {path.name: path for path in found}
    world = World(home, variants, {})
    for layout, mine in variants.items():
        world.reference.update(_undisturbed(world, layout, mine))
    return world


def _undisturbed(world: World, layout: str, variants: dict[str, Path]) -> dict[str, Any]:
    """The daemon as a user starts it, on each variant as an iteration of its own."""
    directory = world.home / f"reference-{layout}"
    names = {100 * (place + 1): name for place, name in enumerate(sorted(variants))}
    for iteration, name in names.items():
        folder = f"checkpoint-{iteration}" if layout == "huggingface" else f"iter_{iteration:07d}"
        shutil.copytree(variants[name], directory / "checkpoints" / folder)
    (directory / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(max(names)))
    section = "huggingface: {checkpoint_path: checkpoints}"
    if layout != "huggingface":
        tokenizer = f"tokenizer_type: huggingface, tokenizer_path: {world.home}/tokenizer"
        section = f"megatron: {{checkpoint_path: checkpoints, {tokenizer}}}"
    config = CONFIG.format(section=section, home=world.home, wandb="{mode: disabled}", order="oldest-first")
    (directory / "evaluator.yaml").write_text(config)
    model_type = "huggingface" if layout == "huggingface" else "megatron"
    command = [sys.executable, "evaluator.py", "--config", str(directory / "evaluator.yaml"), "--once"]
    command += ["--iteration-interval", "100", "--model-type", model_type]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    ended = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {names[i]: scores for (i, _), scores in checks.scores_of(directory / "out").items()}
    assert found.keys() == variants.keys()
    distinct = {json.dumps(sorted((key, one[0]) for key, one in scores.items())) for scores in found.values()}
    assert len(distinct) > 1, "all variants have the same scores: nothing would be shown"
    return {f"{layout}/{name}": scores for name, scores in found.items()}


def megatron_saves(directory: Path) -> Path | None:
    """Real saves of tiny models by megatron-core, where it is installed."""
    import importlib.util

    if importlib.util.find_spec("megatron") is None:
        return None
    from tests.end_to_end.conftest import MEGATRON_SAVES

    directory.mkdir()
    (directory / "save.py").write_text(MEGATRON_SAVES)
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(directory / "save.py"), str(directory)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


# Many of them


def run_lane(world: World, place: Path, seeds: Sequence[int], *, keep: bool = False) -> Iterator[Result]:
    """In this process, which adopts orphans from now on."""
    place.mkdir(parents=True, exist_ok=True)
    lane = Lane(place)
    try:
        for seed in seeds:
            schedule = Schedule(seed, world, lane)
            result = schedule.run()
            if not (keep and result.wrong):
                shutil.rmtree(schedule.directory, ignore_errors=True)
                shutil.rmtree(schedule.out, ignore_errors=True)
            yield result
    finally:
        lane.close()


def in_parallel(world: World, seeds: Sequence[int], jobs: int, *, keep: bool = False) -> Iterator[Result]:
    """``jobs`` lanes, each in a process of its own; results as they come."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    lanes = []
    for number in range(jobs):
        place = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
        mine = list(seeds[number::jobs])
        lane = context.Process(target=_work, args=(world, place, mine, keep, results))
        lane.start()
        lanes.append((lane, place))
    try:
        for _ in seeds:
            result = results.get(timeout=600)
            if isinstance(result, str):
                raise RuntimeError(result)
            yield result
    finally:
        for lane, place in lanes:
            lane.join(30)
            if not keep:
                shutil.rmtree(place, ignore_errors=True)


def _work(world: World, place: Path, seeds: Sequence[int], keep: bool, results: Any) -> None:
    try:
        for result in run_lane(world, place, seeds, keep=keep):
            results.put(result)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def replay(seed: int) -> str:
    return f"python tests/end_to_end/chaos.py --schedules 1 --seed {seed} --keep"


def main() -> int:
    parser = argparse.ArgumentParser(description="Random schedules of faults against the daemon.")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the next ones follow")
    parser.add_argument("--jobs", type=int, default=2, help="schedules at once")
    parser.add_argument("--keep", action="store_true", help="leave the directories of those that went wrong")
    parser.add_argument(
        "--world", type=Path, metavar="DIR", help="keep models and their scores there, and use them again"
    )
    options = parser.parse_args()
    home = options.world or Path(tempfile.mkdtemp(prefix="chaos-world-"))
    known = home / "world.pickle"
    if known.exists():  # our own file, from an earlier call
        world = pickle.loads(known.read_bytes())  # noqa: S301
    else:
        home.mkdir(parents=True, exist_ok=True)
        world = make_world(home, megatron=megatron_saves(home / "megatron"))
        known.write_bytes(pickle.dumps(world))
    began = time.monotonic()
    results = []
    for result in in_parallel(
        world, range(options.seed, options.seed + options.schedules), options.jobs, keep=options.keep
    ):
        results.append(result)
        for problem in result.wrong:
            print(f"seed {result.seed}: {problem}", flush=True)
        if result.wrong:
            print(f"  again: {replay(result.seed)}", flush=True)
    wrong = sorted(result.seed for result in results if result.wrong)
    faults = sum((result.faults for result in results), Counter[str]())
    kinds = sum((result.kinds for result in results), Counter[str]())
    print(f"{len(results)} schedules, {len(wrong)} wrong {wrong}; {sum(result.saves for result in results)} saves")
    print(f"faults: {dict(sorted(faults.items()))}")
    print(f"checkpoints: {dict(sorted(kinds.items()))}; {time.monotonic() - began:.0f} s")
    if options.world is None:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    from tests.end_to_end import chaos  # under the name that pickles know

    sys.exit(chaos.main())
