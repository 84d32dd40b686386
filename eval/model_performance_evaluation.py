#!/usr/bin/env python3
"""One model on a file of conversations, as one JSON answer on standard output. eval/README.md has all parameters.

    python eval/model_performance_evaluation.py --model_name_or_path path/to/model --dataset_path datasets/test.jsonl \\
        --evaluation_metrics Acc F1 BLEU Rouge --max_seq_len 512 --per_device_batch_size 10 --gpu_id 0 \\
        --output_path output_path
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoeval.eval_output import Answer, ArgumentParser, run_script
from autoeval.model_eval.arguments import add_performance


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_performance(parser)
    return run_script(parser, _work, arguments)


def _work(options: argparse.Namespace) -> Answer:
    from autoeval.model_eval.dataset_metrics import evaluate  # heavy: after the command line is known to be right

    return evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
