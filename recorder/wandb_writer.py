"""Bring models that were measured elsewhere onto the board, and build the board, from a YAML file.

``python recorder/wandb_writer.py --config FILE.yaml [--print-only] [--summary-only]``, from any directory. ``evals``
become rows beside our own (remembered in the ledger, and a W&B run each); ``leaderboard: true`` builds the leaderboard
of everything in the ledger. Exit code 0 when done, 1 when something could not be read or sent, 2 for a bad file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from recorder.baselines import STDERR, load_baselines
from recorder.board import Board, Choice, build_board, remember_choice
from recorder.helm_output import HelmOutputError, read_suite
from recorder.leaderboard import write_leaderboard_csv
from recorder.ledger import Ledger, LedgerError
from recorder.published_models import PublishedModel, PublishedRow, remember, together
from recorder.refresh import publisher_lock, read_settings
from recorder.wandb_publisher import Outcome, Publisher, WandbSettings
from recorder.wandb_rows import leaderboard_table
from recorder.writer_config import (
    Evaluation,
    WriterConfig,
    WriterConfigError,
    find_path,
    ledger_path,
    read_config,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Send baselines and the leaderboard to Weights & Biases.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml")
    parser.add_argument("--print-only", action="store_true", help="show the tables; change and send nothing")
    parser.add_argument("--summary-only", action="store_true", help="write only the runs' summaries, no history row")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        config = read_config(options.config)
    except WriterConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return _write(config, options.config, print_only=options.print_only, summary_only=options.summary_only)
    except (HelmOutputError, LedgerError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _write(config: WriterConfig, config_path: Path, *, print_only: bool, summary_only: bool) -> int:
    models = [_model(evaluation, config_path) for evaluation in config.evals]
    path = ledger_path(config, config_path)
    if not path.exists() and (print_only or not models):
        if config.leaderboard:
            print(f"{path}: there is no ledger; run evaluator.py first, or name it with 'ledger:'", file=sys.stderr)
        _print_models(models)
        return 1 if config.leaderboard else 0
    work_dir = path.parent
    with publisher_lock(work_dir):
        ledger = Ledger(path, repair=False)
        try:
            publisher = Publisher(
                ledger, work_dir, WandbSettings(config.mode, config.project, config.wandb.entity, config.base_url)
            )
            outcome = Outcome()
            if models:
                outcome += _write_models(publisher, models, print_only=print_only, summary_only=summary_only)
            if config.leaderboard:
                outcome += _write_leaderboard(publisher, config, print_only=print_only, summary_only=summary_only)
        finally:
            ledger.close()
    if not print_only:
        where = {"offline": f"offline, files in {work_dir / 'wandb'}", "online": f"online, {config.base_url or 'W&B'}"}
        print(f"W&B: {where.get(config.mode, config.mode)}; sent {outcome.published}, pending {outcome.pending}")
    if outcome.error:
        print(outcome.error, file=sys.stderr)
    return 1 if outcome.pending else 0


# Models measured elsewhere


def _model(evaluation: Evaluation, config_path: Path) -> PublishedModel:
    if evaluation.source == "file":
        numbers = {f"{task}.{m}": v for task, metrics in evaluation.eval_result.items() for m, v in metrics.items()}
        by_iteration, source = {evaluation.default_iteration: numbers}, ""
    else:
        assert evaluation.helm_output_dir is not None and evaluation.helm_suite_name is not None
        directory = find_path(evaluation.helm_output_dir, config_path)
        asked = [(benchmark.name, benchmark.metrics) for benchmark in evaluation.benchmarks]
        by_iteration = read_suite(directory, evaluation.helm_suite_name, asked, evaluation.default_iteration)
        source = str(directory)
    rows = [_row(evaluation, iteration, numbers) for iteration, numbers in sorted(by_iteration.items())]
    return PublishedModel(evaluation.model_name, source, tuple(rows))


def _row(evaluation: Evaluation, iteration: int, numbers: dict[str, float]) -> PublishedRow:
    tokens = evaluation.token_num
    if tokens is None and evaluation.token_per_iteration is not None:
        tokens = iteration * evaluation.token_per_iteration
    return PublishedRow(
        iteration,
        tokens,
        {key: value for key, value in numbers.items() if not key.endswith(STDERR)},
        {key.removesuffix(STDERR): value for key, value in numbers.items() if key.endswith(STDERR)},
    )


def _write_models(
    publisher: Publisher, models: Sequence[PublishedModel], *, print_only: bool, summary_only: bool
) -> Outcome:
    own = {row.model for row in publisher.ledger.checkpoints()}
    for model in models:
        if model.name in own:
            print(f"{model.name}: its checkpoints are in the ledger already; what the ledger holds is shown")
    models = [model for model in models if model.name not in own]
    _print_models(models)
    if print_only:
        return Outcome()
    remember(publisher.ledger, models)
    baselines = [model.newest() for model in _known_models(publisher)]
    return publisher.publish_models(models, baselines, summary_only=summary_only)


def _known_models(publisher: Publisher) -> list[PublishedModel]:
    """The remembered models and those of the daemon's baselines file, where it told us of one."""
    settings = publisher.work_dir / "settings.json"
    from_file = read_settings(settings).baselines if settings.exists() else None
    return together(publisher.ledger, load_baselines(from_file) if from_file else [])


def _print_models(models: Sequence[PublishedModel]) -> None:
    for model in models:
        for row in model.rows:
            tokens = "" if row.tokens is None else f", {row.tokens:g} billion tokens"
            print(f"{model.name}: iteration {row.iteration}{tokens}")
            for key, value in sorted(row.values.items()):
                error = f" ± {row.stderrs[key]:.4f}" if key in row.stderrs else ""
                print(f"  {key:40} {value:.4f}{error}")


# The leaderboard


def _write_leaderboard(publisher: Publisher, config: WriterConfig, *, print_only: bool, summary_only: bool) -> Outcome:
    """Remembers what was asked for, so that the daemon's next rebuild shows the same board."""
    choice = Choice(tuple(config.leaderboard_metrics), tuple(sorted({*config.excluded_models, *config.excluded_runs})))
    baselines = [model.newest() for model in _known_models(publisher)]
    board = build_board(publisher.ledger.scores(), baselines, choice)
    for key in config.leaderboard_metrics:
        if key not in board.columns:
            print(f"leaderboard_metrics: no model has {key}", file=sys.stderr)
    _print_table(board)
    if print_only:
        return Outcome()
    if summary_only:
        return publisher.update_summaries(board.baselines)
    remember_choice(publisher.ledger, choice)
    write_leaderboard_csv(publisher.work_dir / "leaderboard.csv", board.rows, board.columns)
    return publisher.publish_leaderboard(board)


def _print_table(board: Board) -> None:
    columns, cells = leaderboard_table(board)
    texts = [columns, *([_cell(value) for value in line] for line in cells)]
    widths = [max(len(line[index]) for line in texts) for index in range(len(columns))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
