"""One schedule: a training run, a daemon, and what happens to them. ``chaos.py`` says what counts as one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from wandb_answers import ENTITY, KEY
from wandb_server import Fault, Imitation

from recorder.wandb_rows import run_id
from tests.end_to_end import chaos_checks as checks
from tests.end_to_end.chaos_family import Family, set_clock
from tests.end_to_end.chaos_processes import Zygote
from tests.end_to_end.chaos_training import Story, Training, trained
from tests.end_to_end.chaos_world import CONFIG, MODEL, PROJECT, World, section_of
from tests.end_to_end.forked_programs import HELPER
from tests.pace import Pace

STOPS_WITHIN = 5.0  # seconds from SIGTERM or Ctrl-C to the end of the last process
SLOW = 1.5  # of that, what work there is, and takes longer on a busy machine
LAST_LIFE_SECONDS = 300.0
PROGRESS_SECONDS = 6.0  # how long a life waits for its fate
PROGRESS = (
    "",
    "watching",
    "is complete",
    "evaluation begins",
    "conversion begins",
    "first acc",
    "second acc",
    "up to date",
)


def jumps(seed: int) -> bool:
    """Whether clocks jump in the schedule ``seed``."""
    return seed % 4 == 0


@dataclass
class Result:
    seed: int
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    saves: int = 0
    recorded: int = 0
    small_disk: bool = False
    seconds: float = 0.0


class Lane:
    """One schedule after the other, with one zygote and one small disk. In a process of its own, which has imported all
    and has one thread, for it adopts all orphans in it."""

    def __init__(self, place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.clock = place / "clock"
        set_clock(self.clock, 0.0)
        self.zygote = Zygote(self.clock)
        set_clock(place / "own clock", 0.0)
        os.environ["FAKETIME_TIMESTAMP_FILE"] = str(place / "own clock")  # ours is never wrong
        self.family = Family(self.zygote.pid)
        self.disk = place / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def start(
        self,
        arguments: list[str],
        home: Path,
        console: Path,
        fates: dict[str, list[Any]] | None = None,
        told: Path | None = None,
    ) -> int:
        """A daemon with ``home`` for its home directory."""
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        environment |= {"HOME": str(home), "WANDB_API_KEY": KEY, "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
        environment |= {"WANDB_ERROR_REPORTING": "false", "TOKENIZERS_PARALLELISM": "false", **self.zygote.environment}
        return self.zygote.start(arguments, environment, console, fates or {}, told or home / "told")

    def run(self, arguments: list[str], console: Path, seconds: float = 300.0) -> int | None:
        """To its end, undisturbed; ``None`` when it does not end."""
        pid, until = self.start(arguments, console.parent, console), time.monotonic() + seconds
        while (code := self.family.code(pid)) is None and time.monotonic() < until:
            time.sleep(0.02)
        return code

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
        self.result.small_disk = self.small_disk
        self.directory = lane.place / f"seed-{seed}"
        self.out = (lane.disk if self.small_disk else self.directory) / f"out-{seed}"
        layouts = [name for name in world.variants if (name == "huggingface") != self.megatron]
        self.layout = self.random.choice(sorted(layouts or world.variants))
        self.megatron = self.layout != "huggingface"
        self.mode = self.random.choices(("online", "offline", "disabled"), (3, 1, 8))[0]
        self.server: Imitation | None = None
        self.count = self.random.choice((2, 2, 3, 4))
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
                    for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                        self._disturbed_life()
                self._last_life()
                self._check(training.story)
            except Exception as error:
                self.result.wrong.append(f"{type(error).__name__}: {error}")
                self._continue_all()
            self.result.kinds.update(training.story.kinds)
            self.result.saves = len(training.story.saves)
        self.result.wrong += self.lane.family.left_after(60.0)
        set_clock(self.lane.clock, 0.0)
        self.result.seconds = time.monotonic() - began
        return self.result

    def _configure(self) -> None:
        wandb = f"{{mode: {self.mode}, entity: {ENTITY}, base_url: '{self.server.url if self.server else ''}'}}"
        order = self.random.choice(("newest-first", "oldest-first", "bisect"))
        if self.server is None:
            wandb = f"{{mode: {self.mode}}}"
        config = CONFIG.format(
            section=section_of(self.world, self.layout),
            home=self.world.home,
            wandb=wandb,
            order=order,
            work_dir=self.out,
        )
        (self.directory / "evaluator.yaml").write_text(config)

    def _start(self, *flags: str, fates: dict[str, list[Any]] | None = None) -> int:
        arguments = ["--config", str(self.directory / "evaluator.yaml"), "--begin-iteration", "100"]
        arguments += ["--end-iteration", str(100 * self.count), "--iteration-interval", "100"]
        kind = "megatron" if self.megatron else "huggingface"
        arguments += ["--model-type", kind, "--check-interval", "0.01", *flags]
        console = self.directory / ("status" if "--status" in flags else "console")
        return self.lane.start(arguments, self.directory, console, fates, self.told)

    def _await(self, pid: int, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while (code := self.lane.family.code(pid)) is None and time.monotonic() < until:
            self._continue_those_due()
            time.sleep(0.02)
        return code

    # Lives

    def _disturbed_life(self) -> None:
        fates = self._fates()
        already = self.seen
        console = self.directory / "console"
        begins_at = console.stat().st_size if console.exists() else 0
        pid = self._start(fates=fates)
        for fault in [self.random.choice(self._faults()) for _ in range(self.random.randint(0 if fates else 1, 2))]:
            self._await_progress(pid, self.random.choice(PROGRESS), begins_at)
            if self._await(pid, self.random.random() * 0.2) is not None:
                break
            self.result.faults[fault] += 1
            getattr(self, f"_fault_{fault}")(pid)
        until = time.monotonic() + PROGRESS_SECONDS
        while fates and self.seen == already and time.monotonic() < until and self._await(pid, 0.05) is None:
            pass  # until a fate has struck
        code = self._await(pid, self.random.random() * 0.5)
        if code is None:
            self._end(pid, self.random.choice(("KILL", "KILL", "TERM", "INT")))
        elif code == 2:
            self.result.wrong.append("a life ended with 2: the configuration was right")
        self._continue_all()
        self._make_room()
        if self.server is not None:
            self.server.fault = lambda channel, count: None

    def _await_progress(self, pid: int, text: str, begins_at: int) -> None:
        """Until the log of this life has ``text``; nothing of it for long is as good a moment as any."""
        until = time.monotonic() + PROGRESS_SECONDS
        while time.monotonic() < until and self._await(pid, 0.02) is None:
            with contextlib.suppress(OSError), (self.directory / "console").open("rb") as stream:
                stream.seek(begins_at)
                if text.encode() in stream.read():
                    return

    def _end(self, pid: int, name: str) -> None:
        self.result.faults[f"end {name}"] += 1
        self._continue_all()
        began = time.monotonic()
        with Pace() as pace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, f"SIG{name}"))
            code = self._await(pid, 60.0)
        if code is None:
            self.result.wrong.append(f"SIG{name} did not end the daemon")
            os.kill(pid, signal.SIGKILL)
            self._await(pid, 5.0)
        elif name != "KILL" and (took := time.monotonic() - began) > STOPS_WITHIN + pace.takes(SLOW):
            self.result.wrong.append(f"SIG{name} took {took:.1f} s")

    def _last_life(self) -> None:
        code = self._await(self._start(), LAST_LIFE_SECONDS)
        if code == 1:  # what faults made fail for good is tried again when a person says so
            self._check_failures()
            self._await(self._start("--retry"), 120.0)
            code = self._await(self._start(), LAST_LIFE_SECONDS)
        if code != 0:
            self.result.wrong.append(f"the last life ended with {code}: {self._tail()}")
        if self.server is not None and (code := self._await(self._start("--sync-wandb"), 300.0)) != 0:
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
            self._await(self._start("--status", "--json"), 120.0)
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
        most = {"daemon": 60, "lister": 2, "worker": 40, "views": 12, "publisher": 30}
        roles = [
            "daemon",
            "daemon",
            "worker",
            "worker",
            "views",
            "lister",
            *(["publisher"] * (self.mode != "disabled")),
        ]
        for role in self.random.sample(roles, self.random.choice((0, 1, 1, 2))):
            names = ("KILL", "STOP") if role == "lister" else ("KILL", "KILL", "TERM", "STOP")
            fate = (self.random.randint(1, most[role]), self.random.choice(names))
            if role == "worker" and self.random.random() < 0.3:
                fates[role] = [fate, (self.random.randint(1, 30), "KILL")]
            else:
                fates[role] = [None] * self.random.choice((0, 0, 1)) + [fate]
        return fates

    def _faults(self) -> list[str]:
        found = ["signal", "signal", "child", "child", "child", "second"]
        if jumps(self.seed):
            found += ["clock"] * 5
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
        if not self._is_locked(pid):
            return  # the second would be the first
        second = self._start()
        code = self._await(second, 60.0)
        if self.lane.family.code(pid) is None and code != 2:
            self.result.wrong.append(f"a second daemon ended with {code} instead of 2")
        if code is None:  # the first was killed meanwhile, this one is at work: the next life would be refused
            self._end(second, "KILL")

    def _is_locked(self, pid: int) -> bool:
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
