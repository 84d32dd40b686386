"""What evaluator.py's flags do. Each command returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from autoeval.causes import causes
from autoeval.config import AutoEval, detached, load_config
from autoeval.lock import WorkDirectoryLock
from autoeval.log_files import keep_own_log
from autoeval.planning import FIVE_DIMENSIONS, WatchOptions, make_watcher, task_plan, write_settings
from autoeval.runners.jobs import QueueRefused
from autoeval.runners.worker_process import WORKER, WorkerDied, ask_tasks
from autoeval.watched_run import WatchedRun, is_settled
from autoeval.yaml_file import ConfigError
from recorder.ledger import CheckpointRow, JobRow, Ledger, LedgerError, TaskRow
from recorder.results import CheckpointRef
from recorder.untrusted import PrintableRecord

logger = logging.getLogger(__name__)

CRASHED = 70  # sysexits.h: an error of the program; 1 is the answer of one that came to its end

RESTART_SECONDS = 10.0  # after a trouble of the machine: a full disk, a file system that is away
ATTEMPTS = 3
STEADY_SECONDS = 300.0  # a daemon that worked for so long has earned all its attempts anew


def run_command(options: argparse.Namespace) -> int:
    """Dispatch on the parsed command line. A bad configuration is told on standard error and gives 2."""
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("watchdog", "apscheduler"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        _refuse_lone_flags(options)
        if options.doctor or options.offline:
            return _examine(options)
        configs = load_config(options.config)
        if options.serve:
            return show_work_directories(configs, options.host, options.port)
        watch = _watch_options(options)
        _check_sections(configs, watch, Path(options.config))
        if options.status:
            return show_status(configs, watch, as_json=options.json)
        if options.retry is not None:
            return retry(configs, options.retry)
        if options.sync_wandb:
            return sync_wandb(configs)
        if options.dry_run:
            return dry_run(configs, watch)
        return run_daemon(configs, watch, Path(options.config), once=options.once, detach=options.detach)
    except ConfigError as error:
        print(f"evaluator.py: {error}", file=sys.stderr)
        return 2
    except QueueRefused as error:
        print(f"evaluator.py: {options.config}: auto_eval.runner: {error}", file=sys.stderr)
        return 2
    except (LedgerError, StartError) as error:
        print(f"evaluator.py: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception:
        logger.exception("evaluator.py has ended by an error of its own")
        return CRASHED
    except KeyboardInterrupt as stopped:  # before or after the daemon's own handling of signals
        print("evaluator.py: stopped", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)


def _refuse_lone_flags(options: argparse.Namespace) -> None:
    other = [name for name in ("once", "dry_run", "status", "sync_wandb", "serve") if getattr(options, name)]
    other += ["retry"] if options.retry is not None else []
    if options.offline and other:
        raise ConfigError(f"--offline goes alone or with --doctor, not with --{other[0].replace('_', '-')}")
    if options.json and not (options.status or options.doctor or options.offline):
        raise ConfigError("--json belongs to --status, --doctor or --offline")
    if options.send_test_message and (not options.doctor or options.offline):
        raise ConfigError("--send-test-message belongs to --doctor, without --offline")


def _examine(options: argparse.Namespace) -> int:
    """``--doctor`` and ``--offline``: they read the configuration themselves, it may be what is wrong."""
    from autoeval.doctor import Asked, examine

    asked = Asked(
        _watch_options(options),
        probe_seconds=options.probe_seconds,
        send_test_message=options.send_test_message,
        offline=options.offline,
        everything=options.doctor,
    )
    return examine(Path(options.config), asked, json_wanted=options.json)


def _watch_options(options: argparse.Namespace) -> WatchOptions:
    watch = WatchOptions(
        begin=options.begin_iteration,
        end=options.end_iteration,
        interval=options.iteration_interval,
        check_interval_minutes=options.check_interval,
        model_type=options.model_type,
        eval_type=options.eval_type,
    )
    if watch.end is not None and watch.end < watch.first:
        raise ConfigError(f"--end-iteration {watch.end} comes before the first iteration that is due, {watch.first}")
    return watch


def _check_sections(configs: Sequence[AutoEval], watch: WatchOptions, path: Path) -> None:
    for config in configs:
        if getattr(config, watch.model_type) is None:
            raise ConfigError(f"{path}: auto_eval.{watch.model_type}: the section is missing (--model-type)")
        plan = task_plan(config, watch.eval_type)
        if plan.icl is None and plan.helm is None:
            section = "icl" if watch.eval_type == FIVE_DIMENSIONS else watch.eval_type
            raise ConfigError(f"{path}: auto_eval.{section}: the section is missing (--eval-type)")


class StartError(RuntimeError):
    """The configuration may be right, but this machine does not let us begin."""


def load_tasks_of(config: AutoEval, watch: WatchOptions) -> list[tuple[str, str]]:
    """(name, version) of each task; what is wrong with a dataset or a spec is a ``ConfigError`` before all else.

    Raises ``StartError`` when the process that finds them out is killed again and again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask_tasks(asdict(task_plan(config, watch.eval_type)))
        except WorkerDied as error:
            logger.warning("%s: %s (%d times)", config.model_name, error, attempt)
            lost = error
        except ValueError as error:
            raise ConfigError(str(error)) from error
    raise StartError(f"{config.model_name}: {lost} {ATTEMPTS} times: is there too little memory?")


def run_daemon(
    configs: Sequence[AutoEval], watch: WatchOptions, path: Path, *, once: bool, detach: bool = False
) -> int:
    """``path`` is evaluator.yaml, which SIGHUP has read again. ``detach``: jobs go on when this process ends."""
    from autoeval.daemon import Daemon
    from autoeval.heartbeat import Doing
    from autoeval.reload import Wanted
    from autoeval.signals import Signals
    from autoeval.work_directories import WorkDirectories

    def wanted(configs: Sequence[AutoEval]) -> list[Wanted]:
        if detach:
            configs = [detached(config) for config in configs]
        return [Wanted(config, tuple(load_tasks_of(config, watch))) for config in configs]

    def read_again() -> list[Wanted]:
        found = load_config(path)
        _check_sections(found, watch, path)
        return wanted(found)

    keep_own_log(configs[0].logs.limits)
    with Signals() as signals, WorkDirectories() as directories:
        directories.hold({config.work_dir: config.logs.limits for config in configs})
        directories.heart.beat(Doing("starting"))
        present = wanted(configs)
        failures = 0
        while True:
            begun = time.monotonic()
            daemon = None
            try:
                runs = [WatchedRun(one.config, watch, one.tasks) for one in present]
                _tell_what_is_watched(runs)
                daemon = Daemon(runs, signals, directories, read_again, once=once)
                status = daemon.run()
            except (OSError, sqlite3.OperationalError, LedgerError) as error:
                # Starting again is the only recovery there is; it need not wait for a person to do it.
                present = daemon.wanted if daemon else present
                failures = 1 if time.monotonic() - begun > STEADY_SECONDS else failures + 1
                if _disk_is_full(error):
                    logger.error("the disk of the work directory is full (%s): going on when there is room", error)
                elif failures < ATTEMPTS:
                    logger.exception("starting again in %.0f s", RESTART_SECONDS)
                else:
                    raise
                directories.heart.beat(Doing("waiting for disk space" if _disk_is_full(error) else "starting"))
                time.sleep(RESTART_SECONDS)
                continue
            logger.info("ended with status %d", status)
            return status


def _tell_what_is_watched(runs: Sequence[WatchedRun]) -> None:
    for run in runs:
        watch = run.options
        logger.info(
            "watching %s, iterations %d, %d, … %s; %d tasks: %s",
            run.watcher.where,
            watch.first,
            watch.first + watch.interval,
            "for ever" if watch.end is None else f"to iteration {watch.end}",
            len(run.tasks),
            ", ".join(name for name, _ in run.tasks),
        )


def _disk_is_full(error: BaseException) -> bool:
    """Whether no space, or no quota, is what an error or one that led to it says."""
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(one, "sqlite_errorname", "") == "SQLITE_FULL" or "disk is full" in str(one):
            return True
    return False


def sync_wandb(configs: Sequence[AutoEval]) -> int:
    """Publish what W&B doesn't show yet of each work directory. Returns 1 when something is pending still."""
    from recorder.refresh import read_settings, sync

    status = 0
    for work_dir, config in {config.work_dir: config for config in configs}.items():
        ledger = work_dir / "ledger.sqlite"
        if not ledger.exists():
            raise LedgerError(f"{ledger} is not there: nothing has been evaluated yet")
        status = max(status, sync(ledger, read_settings(write_settings(config))))
    return status


def dry_run(configs: Sequence[AutoEval], watch: WatchOptions) -> int:
    """Print what a start would do now: checkpoints, tasks, commands, cost as measured on earlier checkpoints."""
    for config in configs:
        tasks = load_tasks_of(config, watch)
        found = make_watcher(config, watch).scan()
        rows = _rows_of(config)
        done = {row.fingerprint for row in rows[0] if is_settled(row)}
        seconds = _seconds_by_task(config)
        print(f"{config.model_name}: {len(found.complete)} complete checkpoints, {len(tasks)} tasks")
        for checkpoint in found.complete:
            state = "done" if checkpoint.fingerprint in done else "to do"
            print(f"  iteration {checkpoint.iteration:>9}  {state:<6} {checkpoint.format:<11} {checkpoint.where}")
        if found.trouble:
            print(f"  nothing is known of what is there: {found.trouble}")
        for iteration, reason in (*found.waiting, *found.abandoned, *found.unsupported):
            print(f"  iteration {iteration:>9}  not complete: {reason}")
        for name, version in tasks:
            cost = f"about {seconds[name]:.1f} s a checkpoint" if name in seconds else "cost unknown: never run yet"
            print(f"  task {name} (version {version}): {cost}")
        todo = sum(checkpoint.fingerprint not in done for checkpoint in found.complete)
        if tasks and all(name in seconds for name, _ in tasks):
            total = todo * sum(seconds[name] for name, _ in tasks)
            print(f"  estimated: {total:.0f} s for {todo} checkpoints")
        print(f"  command: {' '.join(WORKER)}")
    return 0


def _rows_of(config: AutoEval) -> tuple[list[CheckpointRow], list[TaskRow]]:
    """The ledger's rows of a model; nothing when nothing was ever evaluated."""
    path = config.work_dir / "ledger.sqlite"
    if not path.exists():
        return [], []
    with contextlib.closing(Ledger(path, repair=False)) as ledger:
        checkpoints = [r for r in ledger.checkpoints() if r.model == config.model_name and not r.superseded]
        tasks = [r for r in ledger.tasks() if r.model == config.model_name and not r.superseded]
    return checkpoints, tasks


def _jobs_of(config: AutoEval) -> list[JobRow]:
    path = config.work_dir / "ledger.sqlite"
    if not path.exists():
        return []
    with contextlib.closing(Ledger(path, repair=False)) as ledger:
        return ledger.jobs(config.model_name)


def _seconds_by_task(config: AutoEval) -> dict[str, float]:
    """Mean wall seconds of each task over the results that are on disk."""
    from recorder.results import ResultFileError, read_result

    measured: dict[str, list[float]] = {}
    for path in (config.work_dir / config.model_name).glob("iter_*/results/*/*.json"):
        with contextlib.suppress(ResultFileError):
            result = read_result(path)
            measured.setdefault(result.task, []).append(result.cost.get("wall_seconds", 0.0))
    return {task: sum(values) / len(values) for task, values in measured.items()}


def show_status(configs: Sequence[AutoEval], watch: WatchOptions, *, as_json: bool = False) -> int:
    """``autoeval.status`` of each run, printed."""
    from autoeval import status

    found = [status.status_of(config, watch, *_rows_of(config), _jobs_of(config)) for config in configs]
    if as_json:
        print(status.as_json(found))
    else:
        status.print_status(found)
    return 0


def show_work_directories(configs: Sequence[AutoEval], host: str, port: int) -> int:
    """Serve the runs' work directories until Ctrl-C."""
    from recorder import serve

    names: dict[str, Path] = {}
    for work_dir in dict.fromkeys(config.work_dir for config in configs):
        name = work_dir.name
        while name in names:
            name += "+"
        names[name] = work_dir
    try:
        server = serve.make_server(names, host, port)
    except serve.ServeError as error:
        raise ConfigError(str(error)) from None
    shown = ", ".join(map(str, names.values()))
    print(f"serving {shown} until Ctrl-C: {serve.address_of(server)}", flush=True)
    serve.serve(server)
    return 0


def _check_known(configs: Sequence[AutoEval], which: str, iteration: int, task: str) -> None:
    rows = [_rows_of(config) for config in configs]
    known = sorted({row.iteration for checkpoints, _ in rows for row in checkpoints})
    if iteration not in known:
        there = f"the ledger has {', '.join(map(str, known))}" if known else "nothing was ever evaluated"
        raise ConfigError(f"--retry {which}: there is no iteration {iteration}: {there}")
    tasks = sorted({row.task for _, tasks in rows for row in tasks if row.iteration == iteration})
    if task and task not in tasks:
        raise ConfigError(f"--retry {which}: iteration {iteration} has no task '{task}', but {', '.join(tasks)}")


def retry(configs: Sequence[AutoEval], which: str) -> int:
    """Let failed work be tried again at the next start. ``which`` is empty (all) or ``ITERATION[:TASK]``."""
    iteration, _, task = which.partition(":")
    if iteration and not iteration.isdigit():
        raise ConfigError(f"--retry {which}: expected ITERATION or ITERATION:TASK")
    if iteration:
        _check_known(configs, which, int(iteration), task)
    marked = 0
    for config in configs:
        if not (config.work_dir / "ledger.sqlite").exists():
            continue
        lock = WorkDirectoryLock(config.work_dir)  # a running daemon decides from what it holds in memory
        checkpoints, tasks = _rows_of(config)
        with contextlib.closing(Ledger(config.work_dir / "ledger.sqlite", repair=False)) as ledger:
            for row in checkpoints:
                if iteration and row.iteration != int(iteration):
                    continue
                ref = CheckpointRef(row.model, row.iteration, row.fingerprint, row.path, row.tokens)
                mine = [t for t in tasks if (t.iteration, t.fingerprint) == (row.iteration, row.fingerprint)]
                failed = [t for t in mine if t.state == "failed" and task in ("", t.task)]
                for one in failed:
                    ledger.note_task(ref, one.task, "queued", version=one.version)
                if failed or (row.state in ("failed", "missed") and not task):
                    ledger.set_state(ref, "found")
                    marked += 1
                    print(f"{row.model} iteration {row.iteration}: {len(failed)} tasks will be tried again")
        lock.release()
    print(f"{marked} checkpoints will be tried again at the next start")
    return 0
