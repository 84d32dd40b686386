"""One training run under watch: which of its checkpoints are to be evaluated, and what has been recorded of them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoeval.checkpoints import Checkpoint, CheckpointChanged, CheckpointVanished, fingerprint
from autoeval.config import AutoEval
from autoeval.order import given_up, in_turn
from autoeval.pins import Pins
from autoeval.planning import WatchOptions, evaluation_plan, iteration_directory, make_copies, make_watcher, task_plan
from autoeval.storage import StorageError
from autoeval.tasks.converted import keep_newest, sweep
from autoeval.tasks.plan import EvaluationPlan, log_path, save_plan
from recorder.ledger import CheckpointRow, Ledger, TaskRow
from recorder.results import CheckpointRef, read_result

logger = logging.getLogger(__name__)

FINAL_STATES = frozenset({"recorded", "failed", "missed"})
BACKLOG = "max_backlog"  # how the reason of a checkpoint begins that was given up on purpose


@dataclass
class Entry:
    """A checkpoint that this process has seen. ``readable`` is the pinned copy, ``pin`` what holds it.

    ``on_its_way``: the copy of one that lies in a store is not whole yet.
    """

    checkpoint: Checkpoint
    ref: CheckpointRef
    readable: Checkpoint
    pin: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    deaths: dict[str, int] = field(default_factory=dict)  # of the worker, by the task it was at
    on_its_way: bool = False
    being_evaluated: bool = False
    ahead: bool = False  # it is converted, or being converted, before its turn
    finished: bool = False


class WatchedRun:
    """Not thread-safe: the daemon's main thread alone uses it, except ``watcher.wait``."""

    def __init__(self, config: AutoEval, options: WatchOptions, tasks: Sequence[tuple[str, str]]):
        self.config = config
        self.options = options
        self.tasks = tuple(tasks)
        self.task_plan = task_plan(config, options.eval_type)
        self.watcher = make_watcher(config, options)
        self.copies = make_copies(config, self.watcher)
        self.trouble = ""  # why nothing is known of the store
        self.entries: dict[str, Entry] = {}
        self.changed = False  # since the views were last asked for
        fresh = not self.ledger_path.exists()
        self.ledger = Ledger(self.ledger_path)
        if fresh and (taken_in := self.ledger.rebuild(config.work_dir)):
            logger.info("%s: ledger rebuilt from %d result files", config.model_name, taken_in)
        jobs = self.ledger.jobs(config.model_name)  # that a former daemon has submitted
        self._under_way = {row.fingerprint for row in jobs if row.state == "open"}
        sweep(self._directory, {iteration_directory(config, row.iteration) for row in jobs})
        self._pins = Pins(config.work_dir, config.model_name, self.ledger)
        self._scanned = False
        self._settles_at: float | None = None
        self._told: dict[int, str] = {}
        self._told_to_wait = False

    def take_settings(self, config: AutoEval) -> None:
        """From now on ``config`` counts. It differs in nothing that the watcher, the tasks or the ledger were made of."""
        self.config = config
        self.changed = True

    @property
    def ledger_path(self) -> Path:
        return self.config.work_dir / "ledger.sqlite"

    @property
    def logs(self) -> Path:
        return self.config.work_dir / "logs"

    @property
    def _directory(self) -> Path:
        return self.config.work_dir / self.config.model_name

    def scan(self) -> None:
        """Look at the disk; take note of, and pin, every checkpoint that is newly complete."""
        result = self.watcher.scan()
        self.trouble = result.trouble
        self._settles_at = None if result.settles_in is None else time.monotonic() + result.settles_in
        if result.trouble:
            return
        if not self._scanned:
            self._pins.put_aside()
        new = [checkpoint for checkpoint in result.complete if checkpoint.fingerprint not in self.entries]
        recorded = self._recorded() if new else {}
        for checkpoint in new:
            self._take_note(checkpoint, recorded.get(checkpoint.fingerprint))
        if not self._scanned:
            self._go_on_with_what_a_former_daemon_knew()
            self._pins.sweep_former()
            if self.copies is not None:
                self.copies.sweep({entry.readable.path for entry in self.entries.values() if not entry.finished})
            self._scanned = True
        self._tell("is never evaluated", (*result.abandoned, *result.unsupported))
        self._give_up_what_is_too_much()
        self._order_copies()

    @property
    def settles_in(self) -> float | None:
        """Seconds, by the last look, until a save that seems whole has rested long enough to be complete; ``None`` where
        there is none such."""
        return None if self._settles_at is None else self._settles_at - time.monotonic()

    def _order_copies(self) -> None:
        if self.copies is not None:
            waiting = {entry.ref.iteration: entry for entry in self.waiting() if entry.on_its_way}
            turns = in_turn(self.config.order, waiting, self._evaluated()) if waiting else ()
            self.copies.want([waiting[iteration].readable for iteration in turns])

    def take_in_copies(self) -> None:
        """Note what became of copies from the store."""
        for checkpoint, outcome in self.copies.ended() if self.copies is not None else ():
            entry = self.entries.get(checkpoint.fingerprint)
            if entry is None or entry.finished:
                continue
            told = str(outcome)
            if outcome is None:
                entry.on_its_way = False
                self.ledger.set_state(entry.ref, "pinned")
            elif isinstance(outcome, CheckpointChanged):  # the next look sees another fingerprint, or this one again
                self.finish(entry, "missed", told)
                del self.entries[checkpoint.fingerprint]
            elif isinstance(outcome, CheckpointVanished):
                self.finish(entry, "missed", told)
            elif isinstance(outcome, (StorageError, OSError)):
                self._tell("is not copied yet", [(entry.ref.iteration, told)])
                self.ledger.set_state(entry.ref, "found", f"not copied yet: {told}")
            else:
                self.finish(entry, "failed", told)
        self._order_copies()

    def _tell(self, what: str, reasons: Sequence[tuple[int, str]]) -> None:
        for iteration, reason in reasons:
            if self._told.get(iteration) != reason:
                self._told[iteration] = reason
                logger.warning("%s iteration %d %s: %s", self.config.model_name, iteration, what, reason)

    def _take_note(self, checkpoint: Checkpoint, recorded: tuple[CheckpointRow, bool] | None) -> None:
        ref = CheckpointRef(
            model=checkpoint.model,
            iteration=checkpoint.iteration,
            fingerprint=checkpoint.fingerprint,
            path=checkpoint.where,
            tokens=checkpoint.tokens,
        )
        entry = Entry(checkpoint, ref, checkpoint)
        if recorded is not None and recorded[1]:
            entry.finished = True
            self.entries[ref.fingerprint] = entry
            if recorded[0].superseded:  # an earlier save was put back: its scores are the current ones again
                self.ledger.note_checkpoint(ref, recorded[0].state, recorded[0].error)
                self.changed = True
            return
        for older in self.waiting():
            if older.ref.iteration == ref.iteration:
                self.finish(older, "missed", "the iteration was saved again before its evaluation began")
        self.ledger.note_checkpoint(ref, "found")
        logger.info("%s iteration %d is complete (%s)", ref.model, ref.iteration, checkpoint.format)
        try:
            self._pin(entry)
        except CheckpointChanged as error:  # it is being written again: the next look sees another fingerprint
            self.ledger.set_state(ref, "missed", str(error))
            logger.warning("%s iteration %d is missed: %s", ref.model, ref.iteration, error)
        except CheckpointVanished as error:
            self.entries[ref.fingerprint] = entry
            self.finish(entry, "missed", str(error))
        except OSError as error:  # of the disk, not of the checkpoint: tried again at the next look
            self._tell("cannot be pinned", [(ref.iteration, str(error))])

    def _pin(self, entry: Entry) -> None:
        if self.copies is not None:
            self.entries[entry.ref.fingerprint] = entry
            entry.pin.callback(self.copies.drop, entry.readable)
            entry.on_its_way = not self.copies.hold(entry.readable)
            if not entry.on_its_way:
                self.ledger.set_state(entry.ref, "pinned")
            return
        entry.readable = self._pins.hold(entry.pin, entry.ref, entry.readable)
        self.ledger.set_state(entry.ref, "pinned")
        self.entries[entry.ref.fingerprint] = entry

    def _go_on_with_what_a_former_daemon_knew(self) -> None:
        """Unfinished checkpoints of the ledger that are no longer where they were: pinned still, or missed."""
        for row in self._rows():
            unfinished = row.state not in (*FINAL_STATES, "evaluated") and row.fingerprint not in self.entries
            if not unfinished or not self.watcher.wanted(row.iteration):
                continue
            ref = CheckpointRef(row.model, row.iteration, row.fingerprint, row.path, row.tokens)
            gone = Checkpoint(row.model, row.iteration, Path(row.path), "unknown", row.fingerprint, row.tokens)
            held = self._pins.find(row) if self.copies is None else self.copies.find(row.fingerprint)
            if held is not None and not row.superseded:
                entry = Entry(
                    gone, ref, replace(gone, path=held[0], format=held[1], url=row.path if self.copies else "")
                )
                with contextlib.suppress(CheckpointChanged, CheckpointVanished):
                    self._pin(entry)
                    logger.info("%s iteration %d was deleted, but is pinned still", ref.model, ref.iteration)
                    continue
            if self.watcher.is_there():  # otherwise it may be a disk that is not mounted yet
                self.entries[ref.fingerprint] = entry = Entry(gone, ref, gone)
                how = "saved again" if row.superseded else "deleted or saved again"
                self.finish(entry, "missed", f"{row.path} was {how} before its turn, while no daemon was at work")

    def _give_up_what_is_too_much(self) -> None:
        waiting = {entry.ref.iteration: entry for entry in self.waiting()}
        most = self.config.max_backlog
        for iteration in given_up(self.config.order, waiting, self._evaluated(), most):
            self.finish(waiting[iteration], "missed", f"{BACKLOG}: more than {most} checkpoints were waiting")

    def _recorded(self) -> dict[str, tuple[CheckpointRow, bool]]:
        """By fingerprint: the ledger's row of a save, and whether nothing is left to do: all tasks in their present
        versions have ended."""
        ended: dict[tuple[int, str], set[tuple[str, str]]] = {}
        for task in self.ledger.tasks():
            if task.model == self.config.model_name and task.state in ("done", "failed"):
                ended.setdefault((task.iteration, task.fingerprint), set()).add((task.task, task.version))

        def done(row: CheckpointRow) -> bool:
            all_tasks = set(self.tasks) <= ended.get((row.iteration, row.fingerprint), set())
            return is_settled(row) and (all_tasks or row.state != "recorded")

        return {row.fingerprint: (row, done(row)) for row in self._rows()}

    def _rows(self) -> list[CheckpointRow]:
        return [row for row in self.ledger.checkpoints() if row.model == self.config.model_name]

    def _evaluated(self) -> set[int]:
        """Iterations that have scores or are about to have them: the points of the curve."""
        states = ("evaluating", "evaluated", "recorded")
        return {row.iteration for row in self._rows() if row.state in states and not row.superseded}

    def waiting(self) -> list[Entry]:
        """What is to be evaluated and is not being evaluated now, at most one save of an iteration."""
        return [entry for entry in self.entries.values() if not entry.finished and not entry.being_evaluated]

    def take_next(self) -> Entry | None:
        """The checkpoint whose turn it is. Those that are lost by then are recorded as missed on the way."""
        waiting = {entry.ref.iteration: entry for entry in self.waiting() if not entry.on_its_way}
        in_order = list(in_turn(self.config.order, waiting, self._evaluated()))
        # Jobs of a cluster that a former daemon has submitted hold what theirs need: they are waited for first.
        in_order.sort(key=lambda iteration: waiting[iteration].ref.fingerprint not in self._under_way)
        for iteration in in_order:
            if (lost := _lost(waiting[iteration])) is None:
                return waiting[iteration]
            self.finish(waiting[iteration], "missed", lost)
        return None

    def begin(self, entry: Entry) -> Path:
        """Note that ``entry`` is being evaluated; returns the plan file. Tasks that keep killing the worker are left
        out of it."""
        entry.being_evaluated = True
        self._under_way.discard(entry.ref.fingerprint)
        self.ledger.set_state(entry.ref, "evaluating")
        skip = tuple(task for task, deaths in entry.deaths.items() if deaths >= self.config.runner.attempts)
        for task, version in self.tasks:
            if task not in skip:
                self.ledger.note_task(entry.ref, task, "queued", version=version)
        path = iteration_directory(self.config, entry.ref.iteration) / "plan.json"
        save_plan(path, self._plan(entry, skip))
        return path

    def begin_ahead(self, entry: Entry) -> EvaluationPlan:
        """The plan of ``entry``, to convert it before its turn. It is the only one whose converted model is kept for
        that."""
        for other in self.entries.values():
            other.ahead = other is entry
        return self._plan(entry, ())

    def _plan(self, entry: Entry, skip: tuple[str, ...]) -> EvaluationPlan:
        plan = evaluation_plan(self.config, self.task_plan, self.tasks, entry.ref, entry.readable, skip)
        return replace(plan, together=not entry.deaths)

    def ingest(self, entry: Entry, task: str, version: str, result: str) -> None:
        """Take a finished task's file into the ledger."""
        content = read_result(result)
        self.ledger.ingest(content)
        log = str(log_path(self.logs, entry.ref, task))
        self.ledger.note_task(entry.ref, task, "done", version=version, log=log)
        where = f"{entry.ref.model} iteration {entry.ref.iteration}"
        for score in content.scores[:2]:
            shown = "" if score.stderr is None else f" ± {score.stderr:.4f}"
            logger.info("%s: %s %s %.4f%s (n=%d)", where, task, score.metric, score.value, shown, score.n)

    def finish(self, entry: Entry, state: str, error: str | None = None) -> None:
        """Give the checkpoint its final (or ``evaluated``) state and let go of its files."""
        entry.finished, entry.being_evaluated, entry.ahead = True, False, False
        self.changed = True
        if state in ("failed", "missed"):
            log = logger.error if state == "failed" else logger.warning
            log("%s iteration %d %s: %s", entry.ref.model, entry.ref.iteration, state, error)
            for row in self.ledger.tasks():
                if _same_save(row, entry.ref) and row.state in ("queued", "running"):
                    self.ledger.note_task(entry.ref, row.task, "failed", version=row.version, error=error)
        self.ledger.set_state(entry.ref, state, error)
        entry.pin.close()
        needed = [one.ref.iteration for one in self.entries.values() if one.being_evaluated or one.ahead]
        needed += [row.iteration for row in self.ledger.jobs(self.config.model_name) if row.state == "open"]
        in_use = {iteration_directory(self.config, iteration) / "hf" for iteration in needed}
        keep_newest(self._directory, self.config.model.keep_converted, in_use)

    def reached_the_end(self) -> bool:
        """Whether the last due iteration and everything that was complete before it are finished."""
        last = self.options.last
        entries = self.entries.values()
        return last is not None and any(e.ref.iteration == last for e in entries) and all(e.finished for e in entries)

    def tell_what_is_waited_for(self) -> None:
        """Log, once, that nothing is left to do but to wait for the last iteration."""
        last = self.options.last
        if last is None or self._told_to_wait or self.waiting() or self.reached_the_end():
            return
        self._told_to_wait = True
        path = self.watcher.where
        logger.info(
            "%s: waiting for iteration %d (--end-iteration) to appear in %s", self.config.model_name, last, path
        )

    def tell_what_settles(self) -> None:
        """Log, once, that what was saved just now is waited for."""
        if (seconds := self.settles_in) is not None and not self._told_to_wait:
            self._told_to_wait = True
            logger.info("%s: waiting %.1f s: something was saved a moment ago", self.config.model_name, max(0, seconds))

    def anything_failed(self) -> bool:
        """Whether a checkpoint that was seen, or a task on it in its present version, failed for good.

        A missed checkpoint is none: nothing here could help it. Nor is a save that another one has superseded.
        """
        if self.trouble and not self._scanned:
            logger.error("%s: %s", self.config.model_name, self.trouble)
            return True
        rows = [row for row in self._rows() if row.fingerprint in self.entries and not row.superseded]
        return any(row.state == "failed" or (row.state != "missed" and self._failed_tasks(row)) for row in rows)

    def _failed_tasks(self, checkpoint: CheckpointRow) -> list[TaskRow]:
        rows = [row for row in self.ledger.tasks() if _same_save(row, checkpoint) and row.state == "failed"]
        return [row for row in rows if (row.task, row.version) in self.tasks]

    def mark_recorded(self) -> None:
        """What was evaluated to the end is in the ledger, and the views are rebuilt from it: it is recorded."""
        for row in self._rows():
            if row.state == "evaluated":
                ref = CheckpointRef(row.model, row.iteration, row.fingerprint, row.path, row.tokens)
                note = None
                if failed := self._failed_tasks(row):
                    told = "; ".join(f"{task.task}: {task.error}" for task in failed)
                    note = f"{len(failed)} of {len(self.tasks)} tasks failed: {told}"
                self.ledger.set_state(ref, "recorded", note)

    def close(self, *, keep_pins: bool = False) -> None:
        """Stop watching and let go of what is pinned: who ends the daemon in order gets the disk space back.

        ``keep_pins`` is for a daemon that breaks off: the next start goes on with what is pinned.
        """
        self.watcher.stop()
        if self.copies is not None:
            self.copies.close()  # what was copied stays: the next start goes on with it
        self._pins.closing = True
        if keep_pins:
            with contextlib.suppress(OSError):
                self._pins.put_aside()
        for entry in self.entries.values():
            entry.pin.close()
        self.ledger.close()


def is_settled(row: CheckpointRow) -> bool:
    """Whether a save is evaluated no more, unless a task is new or somebody asks for it.

    One that was missed because its files were not there is welcome when they are; one given up on purpose is not.
    """
    return row.state in ("recorded", "failed") or (row.state == "missed" and (row.error or "").startswith(BACKLOG))


def _same_save(row: CheckpointRow | TaskRow, save: CheckpointRef | CheckpointRow) -> bool:
    return (row.model, row.iteration, row.fingerprint) == (save.model, save.iteration, save.fingerprint)


def _lost(entry: Entry) -> str | None:
    """Why a checkpoint cannot be evaluated any more; ``None`` when it can, as far as its files' names and times say."""
    try:
        if fingerprint(entry.readable.path) == entry.ref.fingerprint:
            return None
    except FileNotFoundError:
        return f"{entry.ref.path} was deleted before its turn"
    except OSError:
        return None  # the worker will meet it too, and tell what it is
    return f"{entry.ref.path} was deleted or saved again before its turn"
