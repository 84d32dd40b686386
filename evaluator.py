#!/usr/bin/env python3
"""Watch a training run and evaluate every checkpoint: python evaluator.py --config evaluator.yaml"""

from __future__ import annotations

import argparse
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate the checkpoints of a training run while it trains: scores, report, leaderboard.",
        epilog="Exit status: 0 all recorded, 1 some tasks or checkpoints failed for good, 2 bad configuration.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="evaluator.yaml")
    parser.add_argument("--begin-iteration", type=_iteration, metavar="N", help="default: the iteration interval")
    parser.add_argument("--end-iteration", type=_iteration, metavar="N", help="stop after it; default: run for ever")
    parser.add_argument(
        "--iteration-interval",
        "--interation-interval",  # this spelling circulates in published commands
        type=_positive,
        default=1000,
        metavar="N",
        help="evaluate every N iterations (default: %(default)s)",
    )
    parser.add_argument(
        "--check-interval",
        "--check-iterval",  # likewise
        type=_minutes,
        default=30.0,
        metavar="MINUTES",
        help="look again at least this often, when file-system events do not arrive (default: %(default)g)",
    )
    parser.add_argument("--model-type", choices=("megatron", "huggingface"), default="megatron")
    parser.add_argument("--eval-type", choices=("helm", "icl", "five_dimensions", "all"), default="all")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--once", action="store_true", help="evaluate what is complete, or was saved a moment ago, then stop"
    )
    action.add_argument(
        "--dry-run", action="store_true", help="print checkpoints, tasks, commands and cost; run nothing"
    )
    action.add_argument("--status", action="store_true", help="print checkpoints x tasks x state, then stop")
    action.add_argument(
        "--retry", nargs="?", const="", metavar="ITERATION[:TASK]", help="let failed work be tried again, then stop"
    )
    action.add_argument(
        "--sync-wandb",
        action="store_true",
        help="publish online what W&B doesn't show yet, whatever the mode, then stop",
    )
    action.add_argument("--doctor", action="store_true", help="check all that a run needs, then stop")
    action.add_argument("--serve", action="store_true", help="show the work directory in a browser, until Ctrl-C")
    parser.add_argument("--port", type=_port, default=8765, metavar="N", help="of --serve (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="of --serve; another than %(default)s asks for a token"
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="prove on the newest checkpoint that an evaluation needs no network, then stop; --doctor --offline: with "
        "all other checks that need none",
    )
    parser.add_argument(
        "--probe-seconds",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="of --doctor: how long to wait for the runner's probe job (default: %(default)g)",
    )
    parser.add_argument(
        "--send-test-message", action="store_true", help="of --doctor: send one to Lark, Slack and the webhook"
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave what runs when this ends; the next start finds it again"
    )
    parser.add_argument("--json", action="store_true", help="--status, --doctor or --offline as JSON")
    parser.add_argument("--debug", action="store_true", help="log more")
    return parser.parse_args(arguments)


def _iteration(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an iteration, found {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"expected a port, found {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected minutes above 0, found {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    from autoeval.commands import run_command  # after parsing, so that --help answers at once

    return run_command(options)


if __name__ == "__main__":
    sys.exit(main())
