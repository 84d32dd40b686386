"""Bring models that were measured elsewhere onto the board, and build the board, from a YAML file.

``python recorder/wandb_writer.py --config FILE.yaml [--print-only] [--summary-only] [--sync]``, from any directory.
``evals`` become rows beside our own (remembered in the ledger, and a W&B run each); ``leaderboard: true`` builds the
leaderboard of everything in the ledger; ``--sync`` publishes all that the ledger holds and W&B doesn't show, once,
however often it is asked. Exit code 0 when done, 1 when something could not be read or sent, 2 for a bad file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file, from anywhere
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from recorder.baselines import load_baselines
from recorder.board import Board, Choice, board_of, build_board, remember_choice
from recorder.helm_output import HelmOutputError
from recorder.leaderboard import write_leaderboard_csv
from recorder.ledger import Ledger, LedgerError
from recorder.published_models import PublishedModel, courses, levels, remember, together
from recorder.publishing import publisher_lock
from recorder.refresh import Settings, read_settings, sync, views_lock
from recorder.report.facts import Facts
from recorder.report.page import write_report
from recorder.sources.reading import read_model
from recorder.statistics import Z95
from recorder.untrusted import PrintableRecord
from recorder.wandb_client import WandbSettings
from recorder.wandb_publisher import Outcome, Publisher
from recorder.writer_config import (
    WriterConfig,
    WriterConfigError,
    ledger_path,
    read_config,
)

SHOWN = 40  # numbers of a model that are printed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Send baselines and the leaderboard to Weights & Biases.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml")
    parser.add_argument("--print-only", action="store_true", help="show the tables; change and send nothing")
    parser.add_argument("--summary-only", action="store_true", help="write only the runs' summaries, no history row")
    parser.add_argument("--sync", action="store_true", help="publish online what the ledger holds and W&B doesn't show")
    options = parser.parse_args(arguments)
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        config = read_config(options.config, may_be_empty=options.sync)
    except WriterConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if options.sync:
            return _sync(config, options.config)
        return _write(config, options.config, print_only=options.print_only, summary_only=options.summary_only)
    except (HelmOutputError, LedgerError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was begun is done when it is run again", file=sys.stderr)
        return 130


def _write(config: WriterConfig, config_path: Path, *, print_only: bool, summary_only: bool) -> int:
    models = [read_model(evaluation, config_path) for evaluation in config.evals]
    path = ledger_path(config, config_path)
    if not path.exists() and (print_only or not models):
        _print_models(models)
        if config.leaderboard and models:
            _print_board(build_board(courses(models), levels(models), _choice(config)), config)
        elif config.leaderboard:
            print(f"{path}: there is no ledger; run evaluator.py first, or name it with 'ledger:'", file=sys.stderr)
        return 1 if config.leaderboard and not models else 0
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
                known = _known_models(publisher, models if print_only else ())
                outcome += _write_leaderboard(
                    publisher, config, known, print_only=print_only, summary_only=summary_only
                )
        finally:
            ledger.close()
    if not print_only:
        where = {"offline": f"offline, files in {work_dir / 'wandb'}", "online": f"online, {config.base_url or 'W&B'}"}
        print(f"W&B: {where.get(config.mode, config.mode)}; sent {outcome.published}, pending {outcome.pending}")
    if outcome.error:
        print(outcome.error, file=sys.stderr)
    return 1 if outcome.pending else 0


def _sync(config: WriterConfig, config_path: Path) -> int:
    path = ledger_path(config, config_path)
    settings = path.parent / "settings.json"
    baselines = read_settings(settings).baselines if settings.exists() else None
    wandb = WandbSettings("online", config.project, config.wandb.entity, config.base_url)
    return sync(path, Settings(config.project, config.project, baselines, wandb))


# Models measured elsewhere


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


def _known_models(publisher: Publisher, added: Sequence[PublishedModel] = ()) -> list[PublishedModel]:
    """The remembered models and those of the daemon's baselines file, where it told us of one; and ``added`` ones."""
    settings = publisher.work_dir / "settings.json"
    from_file = read_settings(settings).baselines if settings.exists() else None
    known = together(publisher.ledger, load_baselines(from_file) if from_file else [])
    own = {row.model for row in publisher.ledger.checkpoints()}
    names = {model.name for model in added}
    return [*(one for one in known if one.name not in names), *(one for one in added if one.name not in own)]


def _print_models(models: Sequence[PublishedModel]) -> None:
    for model in models:
        row = model.rows[-1]
        tokens = "" if row.tokens is None else f", {row.tokens:g} billion tokens"
        earlier = f" (the last of {len(model.rows)}, from {model.rows[0].iteration} on)" if len(model.rows) > 1 else ""
        print(f"{model.name}: iteration {row.iteration}{earlier}{tokens}")
        for key, value in sorted(row.values.items())[:SHOWN]:
            error = f" ± {row.stderrs[key]:.4f}" if key in row.stderrs else ""
            chance = f"  (chance {model.chance[key]:.2f})" if model.chance.get(key) else ""
            print(f"  {key:40} {value:.4f}{error}{chance}")
        if len(row.values) > SHOWN:
            print(f"  … and {len(row.values) - SHOWN} more; 'metrics:' says which to take, like [\"arc_*.acc\"]")


# The leaderboard


def _choice(config: WriterConfig) -> Choice:
    return Choice(
        metrics=tuple(config.leaderboard_metrics),
        excluded=tuple(sorted({*config.excluded_models, *config.excluded_runs})),
        iterations=tuple(sorted(config.leaderboard_iterations.items())),
        scoring=config.scoring,
    )


def _write_leaderboard(
    publisher: Publisher,
    config: WriterConfig,
    models: Sequence[PublishedModel],
    *,
    print_only: bool,
    summary_only: bool,
) -> Outcome:
    """Remembers what was asked for, so that the daemon's next rebuild shows the same board."""
    choice = _choice(config)
    if print_only:
        _print_board(board_of(publisher.ledger, models, choice), config)
        return Outcome()
    board = build_board([*publisher.ledger.scores(), *courses(models)], levels(models), choice)
    _print_board(board, config)
    if summary_only:
        return publisher.update_summaries([model.newest() for model in models])
    remember_choice(publisher.ledger, choice)
    with views_lock(publisher.work_dir):
        write_leaderboard_csv(publisher.work_dir / "leaderboard.csv", board.rows, board.columns)
        if config.report:
            facts = Facts(publisher.ledger, [model.newest() for model in models], models)
            write_report(facts, publisher.work_dir / "report.html", title=_title(publisher, config))
    return publisher.publish_leaderboard(board)


def _title(publisher: Publisher, config: WriterConfig) -> str:
    settings = publisher.work_dir / "settings.json"
    return read_settings(settings).title if settings.exists() else config.project


def _print_board(board: Board, config: WriterConfig) -> None:
    for key in config.leaderboard_metrics:
        if key not in board.columns:
            print(f"leaderboard_metrics: no model has {key}", file=sys.stderr)
    known = {row.model for row in board.rows}
    for model in config.leaderboard_iterations:
        if model not in known:
            print(f"leaderboard_iterations: {model} is not on the board", file=sys.stderr)
    _print_table(board)


def _print_table(board: Board) -> None:
    """The columns that were asked for, else those that the score is made of: a person reads this."""
    averaged = next((row.averaged for row in board.rows if row.averaged), ())
    columns = board.columns if board.choice.metrics else [key for key in board.columns if key in averaged]
    texts = [["rank", "model", "iteration", "tokens", "score", "±", *columns]]
    for row in board.rows:
        half = None if row.stderr is None else Z95 * row.stderr
        cells = [row.rank, row.model, row.iteration, row.tokens, row.score, half]
        texts.append([_cell(value) for value in [*cells, *(row.metrics.get(key) for key in columns)]])
    widths = [max(len(line[index]) for line in texts) for index in range(len(texts[0]))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if averaged:
        how = (
            "0 is the worst on the board, 1 the best"
            if board.choice.scoring == "minmax"
            else "0 is guessing, 1 perfect"
        )
        print(f"score: mean of {', '.join(averaged)}; {how}. ± is half of the 95 % interval; ranks tie within it.")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
