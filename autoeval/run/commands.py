"""What run.py does: infer, evaluate, summarise. Each function returns the exit status."""

from __future__ import annotations

import argparse
import datetime
import io
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from autoeval.partitioners import build_partitioner
from autoeval.run.job import Job, Stage, read_job
from autoeval.run.messages import JobMessages
from autoeval.run.plan import print_plan
from autoeval.run.progress import Progress
from autoeval.run.spent import SpentBefore
from autoeval.runners import build_runner
from autoeval.runners.jobs import QueueError
from autoeval.runners.outcome import Outcome
from autoeval.summarizers import build_summarizer
from autoeval.tasks.names import output_path
from autoeval.tasks.openicl import OpenICLEvalTask, OpenICLInferTask, Task
from recorder.files import write_atomic
from recorder.untrusted import PrintableRecord

logger = logging.getLogger("autoeval.run")

FAILED, BAD_CONFIGURATION, INTERRUPTED = 1, 2, 130
_STAMP = re.compile(r"\d{8}_\d{6}")
_PART = re.compile(r"_\d+$")


def run_command(options: argparse.Namespace) -> int:
    """Dispatch on the parsed command line. What is wrong with it is told on standard error and gives 2."""
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(
        level=logging.DEBUG if options.debug or options.dry_run else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not have every character of a table
    for noisy in ("urllib3", "filelock", "matplotlib", "httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if options.datasets == ["list"]:
            from autoeval.run.listing import print_datasets

            return print_datasets(options)
        return _evaluate(options)
    except (ValueError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except QueueError as error:
        print(f"run.py: {error}; -r goes on where it stopped", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("run.py: interrupted; -r goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def _evaluate(options: argparse.Namespace) -> int:
    if options.mode in ("eval", "viz") and options.reuse is None:
        raise ValueError(f"-m {options.mode} needs the run that it is about: -r, or -r TIMESTAMP")
    job = read_job(options)
    stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
    reused = _reused_directory(job.work_dir, options.reuse)
    directory = reused or job.work_dir / stamp
    if reused is None and options.mode in ("eval", "viz"):
        raise ValueError(f"-m {options.mode}: there is no run in {job.work_dir}")
    if options.dry_run:
        return print_plan(job, Progress(job, directory), mode=options.mode, fresh=reused is None)
    if reused is None:
        directory, stamp = _new_directory(job.work_dir)
    write_atomic(directory / "configs" / f"{stamp}.py", job.dump())
    logger.info("%s", directory)
    messages = JobMessages(job.lark)
    messages.started(directory)
    try:
        return _Run(job, directory, stamp, options, messages).all()
    finally:
        messages.close()


class _Run:
    """One job on its way through the stages."""

    def __init__(self, job: Job, directory: Path, stamp: str, options: argparse.Namespace, tell: JobMessages) -> None:
        self.job, self.directory, self.stamp, self.options, self.tell = job, directory, stamp, options, tell
        self.progress = Progress(job, directory)
        self.failures: list[Outcome] = []
        self.reasons: dict[Path, str] = {}  # of results that are not there

    def all(self) -> int:
        """The stages that were asked for, then the summary."""
        mode = self.options.mode
        if mode != "viz" and self.options.reuse is not None:
            for stage in (self.job.infer, self.job.eval):
                build_runner(stage.runner).settle(self.directory / "configs" / "tasks")
        if mode in ("all", "infer"):
            self._infer()
        if mode in ("all", "eval"):
            self._eval()
        if mode != "infer":
            self._summarize()
        for text in map(describe, self.failures):
            print(f"\n{text}", file=sys.stderr)
        return FAILED if self.failures else 0

    def _infer(self) -> None:
        tasks = build_partitioner(self.job.infer.partitioner).partition(
            self.job.models,
            self.job.datasets,
            done=self.progress.inferred,
            count=self.progress.count,
            keep=self.job.keep(self.directory),
            measured=SpentBefore(self.job.work_dir),
        )
        for outcome in self._launch("infer", self.job.infer, [OpenICLInferTask(task) for task in tasks]):
            for path in outcome.missing:
                for name in {path.name, f"{_PART.sub('', path.stem)}.json"}:
                    self.reasons[self.directory / "results" / path.parent.name / name] = (
                        f"inference {why_missing(outcome, path)}"
                    )

    def _eval(self) -> None:
        results = self.directory / "results"
        keep = self.job.keep(self.directory)
        for model in self.job.models:
            for dataset in self.job.datasets:
                # No predictions, no result: also not one of an earlier run.
                path = output_path(results, model, dataset)
                if path in self.reasons:
                    path.unlink(missing_ok=True)
        tasks = build_partitioner(self.job.eval.partitioner).partition(
            self.job.models,
            self.job.datasets,
            done=lambda model, one: (
                output_path(results, model, one) in self.reasons or self.progress.evaluated(model, one)
            ),
            count=self.progress.count,
            keep=keep,
        )
        for outcome in self._launch("eval", self.job.eval, [OpenICLEvalTask(task) for task in tasks]):
            for path in outcome.missing:
                self.reasons[path] = f"evaluation {why_missing(outcome, path)}"

    def _launch(self, name: str, stage: Stage, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one stage; the tasks that failed."""
        logger.info("%s: %d tasks to run", name, len(tasks))
        if not tasks:
            return []
        folder = self.directory / "configs" / "tasks"
        configs = [folder / f"{self.stamp}_{name}_{number}.json" for number in range(len(tasks))]
        # Evaluation asks no model, and may run what one wrote: it has no use for a key.
        secrets = self.job.secrets if name == "infer" else {}
        runner = build_runner(stage.runner, debug=self.options.debug, environment=secrets)
        outcomes = runner.launch(tasks, configs)
        failed = [outcome for outcome in outcomes if not outcome.ok]
        self.failures += failed
        self.tell.stage_ended(name, [outcome.task.name for outcome in outcomes], [one.task.name for one in failed])
        return failed

    def _summarize(self) -> None:
        table, path = build_summarizer(self.job.summarizer).summarize(
            self.directory,
            self.job.models,
            self.job.datasets,
            stamp=self.stamp,
            reasons=self.reasons,
            failures=[describe(outcome) for outcome in self.failures],
        )
        print(table)
        logger.info("%s", path)
        self.tell.summarized(path)


def describe(outcome: Outcome) -> str:
    """A failed task in the summary: what, why, and the end of its log."""
    lines = [f"{outcome.task.name} {outcome.reason}"]
    if outcome.log is not None:
        lines += [f"log: {outcome.log}", *(f"    {line}" for line in outcome.tail())]
    return "\n".join(lines)


def why_missing(outcome: Outcome, path: Path) -> str:
    """What the log says of one output, in a line; else how the task ended."""
    marks = (f"{path.parent.name}/{path.stem}: ", " ERROR ")
    said = [line for line in outcome.lines() if all(mark in line for mark in marks)]
    return f"failed: {said[-1].partition(marks[0])[2]}" if said else outcome.reason


def _reused_directory(work_dir: Path, reuse: str | None) -> Path | None:
    """The run that -r names; None without -r, or when there is none to go on with."""
    if reuse is None:
        return None
    if reuse != "latest":
        directory = work_dir / reuse
        if not directory.is_dir():
            raise ValueError(f"-r {reuse}: {directory} is not there")
        return directory
    runs = sorted(path for path in work_dir.glob("*") if path.is_dir() and _STAMP.fullmatch(path.name))
    if not runs:
        logger.warning("No previous results to reuse!")
        return None
    return runs[-1]


def _new_directory(work_dir: Path) -> tuple[Path, str]:
    """``<work_dir>/%Y%m%d_%H%M%S``, made now; another run of the same second takes the next one."""
    work_dir.mkdir(parents=True, exist_ok=True)
    moment = datetime.datetime.now()
    while True:
        stamp = moment.strftime("%Y%m%d_%H%M%S")
        try:
            (work_dir / stamp).mkdir()
        except FileExistsError:
            moment += datetime.timedelta(seconds=1)
            continue
        return work_dir / stamp, stamp
