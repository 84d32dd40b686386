#!/usr/bin/env python3
"""What a training log says about the run's risks: eval/diagnosis_monitoring.sh LOG [--lang en] [--ledger FILE]"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from autoeval.eval_output import Answer, ArgumentParser, run_script


def parser() -> argparse.ArgumentParser:
    made = ArgumentParser(
        prog="diagnosis_monitoring.py",
        description="Read a training log and report the risks of overfitting, underfitting, catastrophic forgetting "
        "and others, as JSON on standard output. The kind of log is recognised by its content.",
        epilog="Exit status: 0 reported, 1 failed, 2 wrong arguments or no training log, 130 interrupted.",
    )
    made.add_argument("log", type=Path, metavar="LOG", help="log file of the training run")
    made.add_argument("--lang", choices=("zh", "en"), default="zh", help="language of the texts (default: %(default)s)")
    made.add_argument("--ledger", type=Path, metavar="FILE", help="autoeval's ledger.sqlite: also count item flips")
    made.add_argument("--model", metavar="NAME", help="the run's model in the ledger, when it knows several")
    made.add_argument("--parameters", type=_positive, metavar="N", help="model size, when the log does not say it")
    made.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="remember here how far the log was read, and next time read only what is new",
    )
    return made


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")


def work(options: argparse.Namespace) -> Answer:
    from autoeval.diagnosis.flips import forgotten_items
    from autoeval.diagnosis.follow import follow
    from autoeval.diagnosis.report import MESSAGE, diagnose

    log = follow(options.log, options.state)
    if options.parameters:
        log.facts.parameters = options.parameters
    flips = forgotten_items(options.ledger, options.model) if options.ledger else []
    return MESSAGE, diagnose(log, options.lang, flips=flips)


if __name__ == "__main__":
    sys.exit(run_script(parser(), work))
