"""``--doctor``: all that a run needs, found out before the run; every problem at once, however broken things are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from autoeval.checkpoints import Checkpoint
from autoeval.config import AutoEval
from autoeval.doctor import accounts, configuration, machine, places
from autoeval.doctor.finding import Finding, as_json, as_lines, finding_from, ok, problem, summary, warning
from autoeval.doctor.packages import examine_packages
from autoeval.doctor.runner import examine_runner
from autoeval.doctor.sizes import Sizes, sizes_of
from autoeval.doctor.stores import examine_location, examine_store
from autoeval.location import Url
from autoeval.planning import WatchOptions, make_watcher, task_plan
from autoeval.runners.worker_process import HOME, worker_environment

MACHINE = "this machine"
WORKER_SECONDS = 600.0  # for all data sets to be read

Check = tuple[str, Callable[[], Iterable[Finding]]]  # what is checked, and how


@dataclass(frozen=True)
class Asked:
    """What the command line asks of the doctor. ``offline``: nothing that needs a network is tried, and an evaluation
    proves that none is needed; that alone unless ``everything``."""

    watch: WatchOptions
    probe_seconds: float = 120.0
    send_test_message: bool = False
    offline: bool = False
    everything: bool = True


def examine(path: Path, asked: Asked, *, json_wanted: bool = False, print_now: Callable[[str], None] = print) -> int:
    """Examine what the configuration ``path`` describes. Returns 0 when a run can begin, 1 when there is a problem.

    Lines are printed as they are found out; with ``json_wanted`` one JSON document at the end.
    """
    found: list[tuple[str, list[Finding]]] = []
    runs, complaints = configuration.read(path, asked.watch)
    broken = any(one.level == "problem" for one in complaints)
    own: list[Check] = [(configuration.CHECK, lambda: complaints)]
    if asked.everything:
        own.append(("packages", partial(examine_packages, runs)))
    subjects: list[tuple[str, list[Check]]] = [(MACHINE, own)]
    subjects += [(run.model_name or f"run {number}", _checks(run, asked)) for number, run in enumerate(runs, start=1)]
    for subject, checks in subjects:
        findings: list[Finding] = []
        found.append((subject, findings))
        if not json_wanted:
            print_now(f"{subject}:")
        for finding in _all(checks, broken):
            findings.append(finding)
            if not json_wanted:
                print_now(as_lines(finding))
    everything = [finding for _, findings in found for finding in findings]
    print_now(as_json(found) if json_wanted else summary(everything))
    return int(any(finding.level == "problem" for finding in everything))


def _all(checks: Iterable[Check], broken: bool) -> Iterator[Finding]:
    """What all checks find. One that breaks off is told and keeps the others from nothing."""
    for name, check in checks:
        try:
            yield from check()
        except (AttributeError, TypeError, AssertionError) as error:
            if broken:  # it needs a key that was complained of
                expected = "a configuration that says what this check needs"
                yield warning(name, "not checked, or not to the end", expected, "correct the configuration first")
            else:
                yield _broke_off(name, error)
        except Exception as error:
            yield _broke_off(name, error)


def _broke_off(name: str, error: Exception) -> Finding:
    found = f"the check broke off: {type(error).__name__}: {error}"
    return problem(name, found, "a check that comes to its end", "mend what it says; if it says nothing, report it")


def _checks(config: AutoEval, asked: Asked) -> list[Check]:
    """In the order of a run: where it works, what it watches, what it evaluates, where, what it tells."""
    examined = _Examined(config, asked)
    proof: Check = ("offline", lambda: _proof(config, asked.watch))
    if not asked.everything:
        return [proof]
    checks: list[Check] = [
        ("work_dir", lambda: places.examine_work_dir(config.work_dir)),
        ("checkpoint_path", examined.checkpoints),
        ("disk space", examined.room),
        ("files", examined.files),
        ("worker", examined.worker),
        ("runner", examined.runners),
    ]
    if asked.offline:
        return [*checks, proof]
    send = asked.send_test_message
    return [
        *checks,
        ("wandb", lambda: accounts.examine_wandb(config)),
        ("messages", lambda: accounts.examine_messages(config.channels, config.project_name, send=send)),
    ]


class _Examined:
    """One run. What an earlier check found is used by later ones."""

    def __init__(self, config: AutoEval, asked: Asked):
        self.config, self.asked = config, asked
        self.newest: Checkpoint | None = None
        self.sizes: Sizes | None = None
        self.fetched: dict[Path | Url, Path | None] = {}  # what lies in a store: where it is here

    @property
    def _checkpoint_path(self) -> Path | Url:
        section = getattr(self.config, self.asked.watch.model_type)
        path: Path | Url = section.checkpoint_path
        return path

    def checkpoints(self) -> Iterator[Finding]:
        """What is there to be evaluated, and how what comes is noticed."""
        watch, path = self.asked.watch, self._checkpoint_path
        if isinstance(path, Url):
            yield from examine_store(self.config, watch)
            return
        yield from machine.examine_events(path, watch.check_interval_minutes)
        if not path.exists():
            found = f"{path} does not exist yet; it will be waited for"
            yield warning("checkpoint_path", found, "the directory that training writes to", "wait, or check the name")
            return
        if (refused := places.examine_file("checkpoint_path", path)).level == "problem":
            yield refused
            return
        result = make_watcher(self.config, watch).scan()
        self.newest = max(result.complete, key=lambda one: one.iteration, default=None)
        counts = f"{len(result.complete)} complete and due, {len(result.waiting)} not complete"
        why = "".join(f"; iteration {iteration}: {reason}" for iteration, reason in result.waiting[:3])
        yield ok("checkpoint_path", f"{path}: {counts}{why}")
        for iteration, reason in (*result.abandoned, *result.unsupported):
            yield warning("checkpoint_path", f"iteration {iteration} is never evaluated: {reason}", "a complete save", "see docs/convert.md")  # fmt: skip
        if not (result.complete or result.waiting) and (there := _iterations(path, watch)):
            shown = ", ".join(map(str, there[:6])) + (", …" if len(there) > 6 else "")
            due = f"{watch.first}, {watch.first + watch.interval}, …" + (f" {watch.end}" if watch.end else "")
            action = "give --begin-iteration and --iteration-interval as the training saves"
            yield warning(
                "checkpoint_path", f"none of the iterations there is due: {shown}", f"iterations {due}", action
            )
        if self.newest is not None:
            yield places.examine_readable(self.newest.path)

    def room(self) -> Iterator[Finding]:
        """Disk and memory, by what the newest checkpoint is like."""
        config, linked = self.config, False
        if self.newest is not None:
            self.sizes = sizes_of(self.newest, config.work_dir / config.model_name)
            pins, linked = places.examine_pins(self.newest.path, config.work_dir)
            yield pins
        sizes = self.sizes or Sizes(0, 0, "")
        kept = config.model.keep_converted + 2  # besides those: the one at work, and the one converted ahead
        yield places.examine_disk(config.work_dir, sizes.checkpoint, sizes.converted, kept, linked)
        budget = config.model.converted_disk_gb
        if budget is not None and budget * 1e9 < sizes.converted:
            found = f"{budget:g} GB, and one converted model takes {sizes.converted / 1e9:.3g} GB ({sizes.how})"
            yield problem("model.converted_disk_gb", found, "room for one model at least", "raise it")
        yield from machine.examine_limits(sizes.converted or sizes.checkpoint)

    def files(self) -> Iterator[Finding]:
        """What the configuration names besides."""
        config = self.config
        if config.baselines is not None:
            yield _baselines(config.baselines)
        if (section := config.megatron) is None or self.asked.watch.model_type != "megatron":
            return
        if section.validation_text is not None:
            yield places.examine_file("megatron.validation_text", section.validation_text)
        if section.log_path is not None:
            yield places.examine_file("megatron.log_path", section.log_path, may_come=True)
        for key in ("vocab_path", "merge_path", "tokenizer_path"):
            location = getattr(section, key)
            if isinstance(location, Url):
                finding, self.fetched[location] = examine_location(f"megatron.{key}", location, config.storage_options)
                yield finding
        yield _verification(config.model.verify)

    def worker(self) -> Iterator[Finding]:
        """What a process with torch says of devices, tokenizer, tasks and data."""
        config, watch = self.config, self.asked.watch
        megatron = config.megatron if watch.model_type == "megatron" else None
        plan = task_plan(config, watch.eval_type)
        sizes = self.sizes or Sizes(0, 0, "")
        own = self.newest.path if self.newest is not None and self.newest.format == "huggingface" else None
        runner = config.runner
        request = {
            "model": {
                "device": config.model.device,
                "devices": config.model.devices,
                "num_gpus": getattr(runner, "num_gpus", None),
            },
            "devices_here": runner is None or runner.type == "local",
            "model_bytes": sizes.converted or sizes.checkpoint,
            "rows": sizes.rows,
            "tokenizer": None
            if megatron is None
            else {
                "kind": megatron.tokenizer_type,
                "vocab_path": self._here(megatron.vocab_path),
                "merge_path": self._here(megatron.merge_path),
                "path": self._here(megatron.tokenizer_path),
            },
            "model_directory": _text(own),
            "icl": None if plan.icl is None else asdict(plan.icl),
            "helm": None if plan.helm is None else asdict(plan.helm),
        }
        yield from _ask_a_worker(json.dumps(request))

    def _here(self, location: Path | Url | None) -> str | None:
        return None if location is None else str(self.fetched.get(location) or location)

    def runners(self) -> Iterator[Finding]:
        """A probe job through each configured runner."""
        config = self.config
        file = None
        if self.newest is not None:
            file = next((path for path in sorted(self.newest.path.rglob("*")) if path.is_file()), None)
        assert config.work_dir is not None and config.runner is not None
        sections = {"runner": config.runner, "conversion_runner": config.conversion_runner}
        for name, section in sections.items():
            if section is not None:
                seconds = self.asked.probe_seconds
                path = self._checkpoint_path
                place = config.work_dir if isinstance(path, Url) else path  # from a store all is copied there first
                yield from examine_runner(name, section, config.work_dir, place, file, seconds)


def _proof(config: AutoEval, watch: WatchOptions) -> Iterator[Finding]:
    from autoeval.doctor.offline import prove

    return prove(config, watch)


def _ask_a_worker(request: str) -> Iterator[Finding]:
    command = [sys.executable, "-m", "autoeval.doctor.in_worker"]
    try:
        done = subprocess.run(
            command,
            cwd=HOME,
            env=worker_environment(),
            input=request,
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            check=False,
        )
        output, code = done.stdout, done.returncode
        said = done.stderr
    except subprocess.TimeoutExpired as error:
        output, code = _decoded(error.stdout), None
        said = _decoded(error.stderr)
    for line in output.splitlines():
        yield finding_from(json.loads(line))
    if code != 0:
        how = f"did not end within {WORKER_SECONDS:.0f} s" if code is None else f"ended with code {code}"
        last = " | ".join(line for line in said.splitlines()[-4:] if line.strip())
        found = f"a process like the worker {how}" + (f": {last}" if last else "")
        yield problem("worker", found, "a process that can import torch and read the data", "see what it said")


def _decoded(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _iterations(path: Path, watch: WatchOptions) -> list[int]:
    """All iterations that have a directory, due or not."""
    from autoeval.checkpoints.layout import iteration_of

    found = (iteration_of(entry.name, watch.model_type) for entry in path.iterdir() if entry.is_dir())
    return sorted(iteration for iteration in found if iteration is not None)


def _baselines(path: Path) -> Finding:
    from recorder.baselines import load_baselines

    try:
        return ok("baselines", f"{len(load_baselines(path))} models in {path}")
    except (OSError, ValueError) as error:
        return problem("baselines", str(error), "a file like config/baselines.yaml", "correct the file or its name")


def _verification(mode: str) -> Finding:
    import importlib.util

    installed = importlib.util.find_spec("megatron") is not None
    if mode == "never" or installed:
        return ok("model.verify", mode)
    found = f"'{mode}', but megatron-core is not installed: conversions are not compared with it"
    expected, action = "megatron-core", "pip install -c constraints.txt megatron-core, or model.verify: never"
    return (problem if mode == "always" else warning)("model.verify", found, expected, action)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
