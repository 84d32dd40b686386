"""One training run under watch: which of its checkpoints are to be evaluated, and what has been recorded of them."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoeval.checkpoints import Checkpoint, CheckpointChanged, CheckpointVanished, Watcher, pinned, sweep_pins
from autoeval.config import AutoEval
from autoeval.tasks.plan import (
    EvaluationPlan,
    HelmPlan,
    IclPlan,
    ModelOptions,
    TaskPlan,
    TokenizerFiles,
    log_path,
    save_plan,
)
from recorder.files import write_json
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, read_result

logger = logging.getLogger(__name__)

FINAL_STATES = frozenset({"recorded", "failed", "missed"})


@dataclass(frozen=True)
class WatchOptions:
    """What the command line says. ``begin`` None means the interval, ``end`` None means for ever."""

    begin: int | None = None
    end: int | None = None
    interval: int = 1000
    check_interval_minutes: float = 30.0
    model_type: str = "megatron"
    eval_type: str = "all"

    @property
    def first(self) -> int:
        return self.interval if self.begin is None else self.begin

    @property
    def last(self) -> int | None:
        """The last iteration that is due, ``None`` when there is no end."""
        if self.end is None:
            return None
        return self.end - (self.end - self.first) % self.interval


def task_plan(config: AutoEval, eval_type: str) -> TaskPlan:
    """The part of the configuration that says what to evaluate."""
    icl = helm = None
    if config.icl is not None and eval_type in ("icl", "all"):
        icl = IclPlan(tuple(config.icl.datasets), str(config.icl.data_dir), config.icl.limit)
    if config.helm is not None and eval_type in ("helm", "all"):
        chosen = config.helm.benchmarks
        helm = HelmPlan(
            conf_path=str(config.helm.helm_spec_template_path),
            output_path=str(config.helm.helm_output_path or config.work_dir / "helm"),
            suite=f"{config.project_name}-{config.model_name}",
            eval_instances=config.helm.eval_instances,
            benchmarks=None if chosen is None else tuple((b.name, tuple(b.metrics)) for b in chosen),
            seconds_limit=config.helm.seconds_limit,
        )
    return TaskPlan(icl=icl, helm=helm)


def make_watcher(config: AutoEval, options: WatchOptions) -> Watcher:
    section = config.megatron if options.model_type == "megatron" else config.huggingface
    assert section is not None  # commands.py has checked it
    return Watcher(
        section.checkpoint_path,
        config.model_name,
        token_per_iteration=section.token_per_iteration,
        begin=options.first,
        end=options.end,
        interval=options.interval,
        check_interval_seconds=options.check_interval_minutes * 60,
        model_type=options.model_type,
    )


@dataclass
class Entry:
    """A checkpoint that this process has seen. ``readable`` is the pinned copy, ``pin`` what holds it."""

    checkpoint: Checkpoint
    ref: CheckpointRef
    readable: Checkpoint
    pin: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    deaths: dict[str, int] = field(default_factory=dict)  # of the worker, by the task it was at
    being_evaluated: bool = False
    finished: bool = False


class WatchedRun:
    """Not thread-safe: the daemon's main thread alone uses it, except ``watcher.wait``."""

    def __init__(self, config: AutoEval, options: WatchOptions, tasks: Sequence[tuple[str, str]]):
        self.config = config
        self.options = options
        self.tasks = tuple(tasks)
        self.task_plan = task_plan(config, options.eval_type)
        self.watcher = make_watcher(config, options)
        self.entries: dict[str, Entry] = {}
        fresh = not self.ledger_path.exists()
        self.ledger = Ledger(self.ledger_path)
        if fresh and (taken_in := self.ledger.rebuild(config.work_dir)):
            logger.info("%s: ledger rebuilt from %d result files", config.model_name, taken_in)
        sweep_pins(self._pins)
        self._sweep_conversions()
        self._told: dict[int, str] = {}

    @property
    def ledger_path(self) -> Path:
        return self.config.work_dir / "ledger.sqlite"

    @property
    def logs(self) -> Path:
        return self.config.work_dir / "logs"

    @property
    def _pins(self) -> Path:
        # By model: another run may share the work directory, and its pins are not ours to sweep.
        return self.config.work_dir / ".pins" / self.config.model_name

    def directory(self, iteration: int) -> Path:
        return self.config.work_dir / self.config.model_name / f"iter_{iteration:07d}"

    def scan(self) -> None:
        """Look at the disk; take note of, and pin, every checkpoint that is newly complete."""
        result = self.watcher.scan()
        for checkpoint in result.complete:
            if checkpoint.fingerprint not in self.entries:
                self._take_note(checkpoint)
        for iteration, reason in result.abandoned:
            if self._told.get(iteration) != reason:
                self._told[iteration] = reason
                logger.warning("%s iteration %d is never evaluated: %s", self.config.model_name, iteration, reason)

    def _take_note(self, checkpoint: Checkpoint) -> None:
        ref = CheckpointRef(
            model=checkpoint.model,
            iteration=checkpoint.iteration,
            fingerprint=checkpoint.fingerprint,
            path=str(checkpoint.path),
            tokens=checkpoint.tokens,
        )
        entry = Entry(checkpoint, ref, checkpoint)
        if self._is_done(ref):
            entry.finished = True
            self.entries[ref.fingerprint] = entry
            return
        for older in self.entries.values():
            if older.ref.iteration == ref.iteration and not older.finished and not older.being_evaluated:
                logger.warning("iteration %d was saved again before its evaluation began", ref.iteration)
                self.finish(older, "missed", "the iteration was saved again before its evaluation began")
        self.ledger.note_checkpoint(ref, "found")
        logger.info("%s iteration %d is complete (%s)", ref.model, ref.iteration, checkpoint.format)
        try:
            entry.readable = entry.pin.enter_context(pinned(checkpoint, self._pins))
        except (CheckpointVanished, CheckpointChanged) as error:
            self.ledger.set_state(ref, "missed", str(error))
            logger.warning("%s iteration %d is missed: %s", ref.model, ref.iteration, error)
            entry.finished = isinstance(error, CheckpointVanished)
            if not entry.finished:
                return  # it is being written again: the next look sees another fingerprint
        else:
            self.ledger.set_state(ref, "pinned")
        self.entries[ref.fingerprint] = entry

    def _is_done(self, ref: CheckpointRef) -> bool:
        """Whether this save was evaluated to the end, by all tasks in their present versions."""
        row = next((r for r in self.ledger.checkpoints() if _same_save(r, ref)), None)
        if row is None or row.state not in FINAL_STATES:
            return False
        if row.state != "recorded":
            return True
        rows = self.ledger.tasks()
        known = {(r.task, r.version) for r in rows if _same_save(r, ref) and r.state in ("done", "failed")}
        return set(self.tasks) <= known

    def pending(self) -> list[Entry]:
        """What waits for evaluation, in the configured order."""
        newest_first = self.config.order == "newest-first"
        waiting = [entry for entry in self.entries.values() if not entry.finished]
        return sorted(waiting, key=lambda entry: entry.ref.iteration, reverse=newest_first)

    def reached_the_end(self) -> bool:
        """Whether the last due iteration and everything that was complete before it are finished."""
        last = self.options.last
        return last is not None and any(e.ref.iteration == last for e in self.entries.values()) and not self.pending()

    def anything_failed(self) -> bool:
        """Whether a checkpoint or a task failed for good. A missed checkpoint is none: nothing here could help it."""
        seen = {entry.ref.fingerprint for entry in self.entries.values()}
        rows = [row for row in self.ledger.checkpoints() if row.fingerprint in seen and row.state != "missed"]
        mine = {row.fingerprint for row in rows}
        failed_tasks = any(row.state == "failed" and row.fingerprint in mine for row in self.ledger.tasks())
        return failed_tasks or any(row.state == "failed" for row in rows)

    def make_plan(self, entry: Entry) -> Path:
        """Write the plan file of a checkpoint. Tasks that keep killing the worker are left out."""
        directory = self.directory(entry.ref.iteration)
        allowed = self.config.runner.max_attempts
        plan = EvaluationPlan(
            checkpoint=entry.ref,
            format=entry.readable.format,
            source=str(entry.readable.path),
            directory=str(directory),
            logs=str(self.logs),
            tasks=self.task_plan,
            tokenizer=self._tokenizer(),
            model=self._model_options(),
            skip=tuple(task for task, deaths in entry.deaths.items() if deaths >= allowed),
        )
        path = directory / "plan.json"
        save_plan(path, plan)
        return path

    def _tokenizer(self) -> TokenizerFiles | None:
        section = self.config.megatron
        if section is None:
            return None

        def text(path: Path | None) -> str | None:
            return None if path is None else str(path)

        return TokenizerFiles(
            kind=section.tokenizer_type,
            vocab_path=text(section.vocab_path),
            merge_path=text(section.merge_path),
            path=text(section.tokenizer_path),
        )

    def _model_options(self) -> ModelOptions:
        options = self.config.model
        return ModelOptions(options.dtype, options.device, options.max_seq_len, options.batch_tokens)

    def ingest(self, entry: Entry, task: str, version: str, result: str) -> None:
        """Take a finished task's file into the ledger."""
        content = read_result(result)
        self.ledger.ingest(content)
        log = str(log_path(self.logs, entry.ref, task))
        self.ledger.note_task(entry.ref, task, "done", version=version, log=log)
        for score in content.scores[:2]:
            shown = "" if score.stderr is None else f" ± {score.stderr:.4f}"
            logger.info(
                "%s iteration %d: %s %s %.4f%s (n=%d)",
                entry.ref.model,
                entry.ref.iteration,
                task,
                score.metric,
                score.value,
                shown,
                score.n,
            )

    def finish(self, entry: Entry, state: str, error: str | None = None) -> None:
        """Give the checkpoint its final (or ``evaluated``) state and let go of its files."""
        entry.finished, entry.being_evaluated = True, False
        if state in ("failed", "missed"):
            for row in self.ledger.tasks():
                if _same_save(row, entry.ref) and row.state in ("queued", "running"):
                    self.ledger.note_task(entry.ref, row.task, "failed", version=row.version, error=error)
        self.ledger.set_state(entry.ref, state, error)
        entry.pin.close()
        self.remove_old_conversions()

    def remove_old_conversions(self) -> None:
        """Keep the newest ``model.keep_converted`` Hugging Face directories that were made here."""
        in_use = {self.directory(entry.ref.iteration) for entry in self.pending()}
        made = sorted((self.config.work_dir / self.config.model_name).glob("iter_*/hf"))
        done = [path for path in made if path.parent not in in_use]
        for path in done[: max(0, len(done) - self.config.model.keep_converted)]:
            shutil.rmtree(path, ignore_errors=True)

    def _sweep_conversions(self) -> None:
        """Remove what a conversion that was killed left beside its place; the lock says that none is at work."""
        for pattern in ("iter_*/.hf.partial-*", "iter_*/.hf.old-*"):
            for left in (self.config.work_dir / self.config.model_name).glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def failed_tasks(self, ref: CheckpointRef) -> list[Any]:
        return [row for row in self.ledger.tasks() if _same_save(row, ref) and row.state == "failed"]

    def mark_recorded(self) -> None:
        """What was evaluated to the end is in the ledger, and the views are rebuilt from it: it is recorded."""
        for row in self.ledger.checkpoints():
            if row.state == "evaluated" and row.model == self.config.model_name:
                ref = CheckpointRef(row.model, row.iteration, row.fingerprint, row.path, row.tokens)
                failed = self.failed_tasks(ref)
                note = None
                if failed:
                    note = f"{len(failed)} of {len(self.tasks)} tasks failed: " + "; ".join(
                        f"{r.task}: {r.error}" for r in failed
                    )
                self.ledger.set_state(ref, "recorded", note)

    def write_settings(self) -> Path:
        """The views' settings, for ``recorder.refresh``."""
        config = self.config
        path = config.work_dir / "settings.json"
        write_json(
            path,
            {
                "project": config.wandb_project,
                "title": config.project_name,
                "baselines": None if config.baselines is None else str(config.baselines),
                "wandb": {
                    "mode": config.wandb.mode,
                    "project": config.wandb_project,
                    "entity": config.wandb.entity,
                    "base_url": config.wandb.base_url,
                },
            },
        )
        return path

    def close(self) -> None:
        self.watcher.stop()
        for entry in self.entries.values():
            entry.pin.close()
        self.ledger.close()


def _same_save(row: Any, ref: CheckpointRef) -> bool:
    return row.model == ref.model and row.iteration == ref.iteration and row.fingerprint == ref.fingerprint
