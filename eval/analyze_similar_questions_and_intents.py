#!/usr/bin/env python3
"""Similar questions with different intents, and intents that mean the same, as JSON; -h tells the options."""

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
        prog="analyze_similar_questions_and_intents.py",
        description="Find questions that are nearly the same but have different intents, and intents that mean nearly "
        "the same. Answers in JSON on standard output.",
        epilog="Exit status: 0 analysed, 1 failed, 2 wrong arguments or data, 130 interrupted.",
    )
    made.add_argument("--data_file_path", type=Path, required=True, help="JSON list or JSON lines")
    made.add_argument("--similarity_threshold", type=_cosine, default=0.91, help="of questions (default: %(default)s)")
    made.add_argument(
        "--intent_similarity_threshold", type=_cosine, default=0.86, help="of intents (default: %(default)s)"
    )
    made.add_argument("--model_path", type=Path, required=True, help="a local sentence-transformers directory")
    made.add_argument("--batch_size", type=_count, default=64, help="texts embedded at once (default: %(default)s)")
    made.add_argument(
        "--max_pairs",
        type=_count,
        default=100_000,
        help="list at most so many, the most similar (default: %(default)s)",
    )
    made.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU when there is one)")
    return made


def _cosine(text: str) -> float:
    with contextlib.suppress(ValueError):
        if -1.0 <= (value := float(text)) <= 1.0:
            return value
    raise argparse.ArgumentTypeError(f"expected a cosine between -1 and 1, found {text}")


def _count(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")


def work(options: argparse.Namespace) -> Answer:
    from autoeval.intents.records import read_records

    records = read_records(options.data_file_path)  # before the model is loaded: a bad line is told at once

    from autoeval.intents.analysis import analyze
    from autoeval.intents.embedding import Embedder

    found = analyze(
        records,
        Embedder(options.model_path, options.device),
        similarity_threshold=options.similarity_threshold,
        intent_similarity_threshold=options.intent_similarity_threshold,
        most=options.max_pairs,
        batch_size=options.batch_size,
    )
    return "Similar questions and intents", dict(found)


if __name__ == "__main__":
    sys.exit(run_script(parser(), work))
