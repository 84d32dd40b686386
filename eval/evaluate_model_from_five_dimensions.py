#!/usr/bin/env python3
"""Five dimensions of one model, as one JSON answer on standard output. eval/README.md has all parameters.

    python eval/evaluate_model_from_five_dimensions.py path/to/model \\
        '["inference_ability", "reading_comprehension", "chinese_language_skill", "command_compliance", "innovation_capacity"]' \\
        '{"additional_parameters": {"max_seq_len": 512, "data_dir": "./data"}}'
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoeval.eval_output import Answer, ArgumentParser, run_script
from autoeval.model_eval.arguments import add_five_dimensions


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_five_dimensions(parser)
    return run_script(parser, _work, arguments, flat=True)


def _work(options: argparse.Namespace) -> Answer:
    from autoeval.model_eval.five_dimensions import evaluate  # heavy: after the command line is known to be right

    return evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
