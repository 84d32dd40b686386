#!/usr/bin/env python3
"""One evaluation now: python run.py config/eval_demo.py, or --models/--hf-path with --datasets (docs/run.md)."""

from __future__ import annotations

import argparse
import sys


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate models on datasets: infer, evaluate, summarise. OpenCompass's command line.",
        epilog="Exit status: 0 all done, 1 some tasks failed for good, 2 bad command line or configuration.",
    )
    parser.add_argument("config", nargs="?", help="configuration file; goes before --models and --datasets")
    _add_choice(parser)
    _add_model(parser)
    _add_run(parser)
    _add_cluster(parser)
    options = parser.parse_args(arguments)
    for name, flag in (("partition", "-p"), ("quotatype", "-q"), ("qos", "--qos")):
        if getattr(options, name) is not None and not options.slurm:
            parser.error(f"{flag} belongs to --slurm")
    if options.aliyun_cfg is not None and not options.dlc:
        parser.error("--aliyun-cfg belongs to --dlc")
    if options.slurm and not options.partition:
        parser.error("--slurm needs -p PARTITION")
    return options


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is evaluated")
    group.add_argument("--models", nargs="+", metavar="NAME", help="names of config/models (patterns), or files")
    group.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="names of config/datasets (patterns), or files; 'list' shows them"
    )
    group.add_argument("--summarizer", metavar="NAME", help="a name of config/summarizers (default: example)")
    group.add_argument("--config-dir", metavar="DIR", help="instead of this repository's config/")
    group.add_argument("--data-dir", metavar="DIR", help="default: ./data")
    group.add_argument("--limit", type=_positive, metavar="N", help="N items of each dataset, always the same ones")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a Hugging Face model")
    group.add_argument("--hf-type", choices=("base", "chat"), help="default: chat")
    group.add_argument("--hf-path", metavar="PATH")
    group.add_argument("--peft-path", metavar="PATH", help="an adapter")
    group.add_argument("--tokenizer-path", metavar="PATH", help="when it is not beside the model")
    group.add_argument(
        "--model-kwargs", nargs="+", metavar="KEY=VALUE", help="torch_dtype=torch.float16 device_map=auto"
    )
    group.add_argument("--tokenizer-kwargs", nargs="+", metavar="KEY=VALUE")
    group.add_argument("--max-seq-len", type=_positive, metavar="N")
    group.add_argument("--max-out-len", type=_positive, metavar="N", help="where the dataset does not say itself")
    group.add_argument("--batch-size", type=_positive, metavar="N", help="default: what memory and device allow")
    group.add_argument("--pad-token-id", type=int, metavar="N", help="accepted; padding is exact without it")
    group.add_argument("--hf-num-gpus", "--num-gpus", type=_count, metavar="N", help="default: 1")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is run")
    group.add_argument(
        "-m", "--mode", choices=("all", "infer", "eval", "viz"), default="all", help="default: %(default)s"
    )
    group.add_argument(
        "-r", "--reuse", nargs="?", const="latest", metavar="TIMESTAMP", help="go on with a run (the latest)"
    )
    group.add_argument("-w", "--work-dir", metavar="DIR", help="default: outputs/default")
    group.add_argument("-l", "--lark", action="store_true", help="report to the configuration's lark_bot_url")
    group.add_argument(
        "--debug", action="store_true", help="one task after the other in this process, nothing redirected"
    )
    group.add_argument("--dry-run", action="store_true", help="print the tasks, commands and cost; run nothing")
    group.add_argument("--dump-eval-details", action="store_true", help="prompts and answers in the results too")
    group.add_argument(
        "--allow-code-execution", action="store_true", help="let HumanEval run what the model wrote, isolated"
    )
    group.add_argument("--max-num-workers", type=_positive, metavar="N", help="tasks at once (default: 1)")
    group.add_argument("--max-workers-per-gpu", type=_positive, metavar="N", help="tasks on one GPU (default: 1)")
    group.add_argument("--max-partition-size", type=_positive, metavar="N", help="cut tasks by cost (SizePartitioner)")
    group.add_argument("--gen-task-coef", type=_positive, metavar="N", help="cost of a generated item (default: 20)")
    group.add_argument("--retry", type=_count, metavar="N", help="further tries of a failed task (default: 2)")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clusters")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument("--slurm", action="store_true", help="tasks as Slurm job arrays of --max-num-workers at a time")
    kind.add_argument("--dlc", action="store_true", help="tasks as jobs of Alibaba Cloud's PAI-DLC")
    group.add_argument("-p", "--partition", metavar="NAME")
    group.add_argument("-q", "--quotatype", metavar="TYPE", help="where the site has it: reserved, spot, auto")
    group.add_argument("--qos", metavar="NAME")
    group.add_argument("--aliyun-cfg", metavar="FILE", help="settings for --dlc (default: ~/.aliyun.cfg)")


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    from autoeval.run.commands import run_command  # after parsing, so that --help answers at once

    return run_command(options)


if __name__ == "__main__":
    sys.exit(main())
