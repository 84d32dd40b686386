"""Bring a log up to date, and remember how far it was read; the training curve as JSON for the report.

``python -m autoeval.diagnosis.follow --log LOG --work-dir W --model NAME [--lang en]`` is what the daemon calls after a
checkpoint: it reads what is new in the log and writes ``W/NAME/training_log.json``. With ``--then COMMAND …`` it becomes
that command afterwards, whatever came of the log.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoeval.diagnosis.finding import Finding
from autoeval.diagnosis.flips import forgotten_items
from autoeval.diagnosis.report import diagnose
from autoeval.diagnosis.series import training_loss
from autoeval.diagnosis.training_log import TrainingLog
from recorder.files import write_atomic, write_json
from recorder.untrusted import PrintableRecord

logger = logging.getLogger(__name__)

CURVE_FILE = "training_log.json"
STATE_FILE = ".training_log.state.json"
STATE_BEGINS = b'{"version": '  # what ``TrainingLog.state`` is written with
POINTS = 1000  # of each curve in the report


def follow(path: Path, state: Path | None = None) -> TrainingLog:
    """The log ``path``, up to date. With ``state`` only what is new since the last call is read.

    A state that is not of this log, or of another version, is begun anew. Raises ``OSError``, ``UnknownLogError``, and
    ``ValueError`` when ``state`` is a file but no state: it is somebody's, and stays as it is.
    """
    path = path.absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; expected a log file")
    if state is None:
        log = TrainingLog(path)
        log.read()
        return log
    log = _remembered(path, state)
    log.read(to_the_end=False)
    write_atomic(state, json.dumps(log.state()))
    log.read()  # an unfinished last line and a row still gathered: seen in this report, read again the next time
    return log


def _remembered(path: Path, state: Path) -> TrainingLog:
    try:
        content = state.read_bytes()
    except FileNotFoundError:
        return TrainingLog(path)
    if not content.startswith(STATE_BEGINS):
        raise ValueError(f"{state}: is not a state that was remembered of a log: it would be overwritten")
    try:
        return TrainingLog.restored(path, json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        logger.warning("%s: not usable (%s): reading %s from its start", state, error, path)
        return TrainingLog(path)


def write_curve(log: TrainingLog, target: Path, model: str, language: Any, flips: Sequence[Finding] = ()) -> None:
    """Write what the report draws: ``{"model", "axis", "train", "validation", …, "diagnosis"}``; at once or not at all.

    ``train`` has ``[iteration, loss, lowest, highest]`` a bin, at most ``POINTS``; ``validation`` ``[iteration, loss]``.
    """
    write_json(
        target,
        {
            "model": model,
            "log": str(log.path),
            "axis": log.axis,
            "train": _train_points(log),
            "validation": {
                name or "validation": [[x, y] for x, y in sorted(points.items()) if math.isfinite(y)]
                for name, points in log.validations.items()
            },
            "diagnosis": _plain(diagnose(log, language, flips=flips)),
        },
        indent=None,
    )


def _train_points(log: TrainingLog) -> list[list[float]]:
    train = training_loss(log)
    low, high = log.curve.bins["loss_min"], log.curve.bins["loss_max"]
    good = [index for index, value in enumerate(log.curve.loss) if math.isfinite(value)]
    size = max(1, -(-len(train) // POINTS))
    points = []
    for start in range(0, len(train), size):
        part = slice(start, start + size)
        chosen = good[part]
        points.append(
            [
                float(train.x[part][-1]),
                float(train.y[part].mean()),
                float(low[chosen].min()),
                float(high[chosen].max()),
            ]
        )
    return points


def _plain(value: Any) -> Any:
    """``value`` with null for numbers that are not finite: they are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autoeval.diagnosis.follow", description="Follow a training log.")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lang", choices=("zh", "en"), default="en")
    parser.add_argument("--then", nargs=argparse.REMAINDER, default=[], help="become this command afterwards")
    options = parser.parse_args(arguments)
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    status = 0
    try:
        place = options.work_dir / options.model
        log = follow(options.log, place / STATE_FILE)
        flips = _flips(options.work_dir / "ledger.sqlite", options.model)
        write_curve(log, place / CURVE_FILE, options.model, options.lang, flips)
    except (OSError, ValueError) as error:
        logger.warning("training log: %s", error)
        status = 1
    except Exception:
        if not options.then:
            raise
        logger.exception("training log")  # the report is worth more than its training curve
    if options.then:
        os.execv(options.then[0], options.then)
    return status


def _flips(ledger: Path, model: str) -> list[Finding]:
    try:
        return forgotten_items(ledger, model)
    except ValueError as error:  # no scores yet
        logger.info("%s", error)
        return []


if __name__ == "__main__":
    sys.exit(main())
