"""``python -m autoeval.convert CHECKPOINT_DIR OUTPUT_DIR``: one Megatron checkpoint to a Hugging Face directory.

Exit code 0 when converted and every check asked for passed, 1 when not (the last line says why; what failed a check is
moved to OUTPUT_DIR.quarantined), 2 for a wrong command line, 130 or 143 when interrupted or terminated: nothing is left.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoeval.convert import Receipt
    from autoeval.convert.writer import Progress


class Terminated(BaseException):
    """SIGTERM, as an exception: what was begun is taken back on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # huge pages for torch's buffers: fewer page faults while reading
    signal.signal(signal.SIGTERM, _terminate)
    from autoeval.convert import ConversionError

    try:
        receipt = _convert(options)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was converted", file=sys.stderr)
        return 130
    except Terminated:
        return 143
    _report(options, receipt)
    return 0


def _convert(options: argparse.Namespace) -> Receipt:
    from autoeval.convert import ExpectedLoss, convert
    from autoeval.convert.source import iteration_directory
    from autoeval.convert.tokenizer import tokenizer_source

    expected = None
    if options.expected_loss is not None:
        expected = ExpectedLoss(options.expected_loss, options.held_out_text, options.loss_tolerance)
    with _Bar() as progress:
        return convert(
            iteration_directory(options.checkpoint_dir, options.iteration),
            options.output_dir,
            tokenizer=tokenizer_source(options.tokenizer) if options.tokenizer else None,
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_size,
            expected_loss=expected,
            verify=options.verify,
            progress=progress,
        )


def _report(options: argparse.Namespace, receipt: Receipt) -> None:
    print(
        f"{options.output_dir}: {receipt.architecture}, {receipt.parameters:,} parameters, {receipt.dtype}, "
        f"from {receipt.source} ({receipt.checksum[:17]})"
    )
    if receipt.tokenizer is None:
        print("no --tokenizer given: the padded vocabulary was kept and no tokenizer written")
    if loss := receipt.loss:
        print(
            f"loss on {loss['text']}: {loss['loss']:.3f} nats per token over {loss['tokens']} tokens, "
            f"{loss['difference']:+.3f} against the run's own {loss['expected']:.3f}"
        )
    if found := receipt.verified:
        print(
            f"verified against Megatron {found['megatron_version']}: largest logit difference "
            f"{found['difference']:.2e}, argmax equal at {found['same_argmax']} of {found['positions']} positions, "
            "every byte read back"
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, codes = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m autoeval.convert", description=summary, epilog=codes)
    add = parser.add_argument
    add("checkpoint_dir", type=Path, metavar="CHECKPOINT_DIR", help="the save directory, or an iter_… in it")
    add("output_dir", type=Path, metavar="OUTPUT_DIR")
    add("--iteration", type=_iteration, metavar="N", help="default: the one that the tracker file names")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face directory, a SentencePiece .model file, or vocab.json,merges.txt (or a directory with both)",
    )
    add("--max-shard-size", type=_size, default="50GB", metavar="SIZE", help="like 5GB or 500MB; default 50GB")
    add("--verify", action="store_true", help="compare logits with Megatron's own on the CPU, and read every byte back")
    add("--expected-loss", type=float, metavar="NATS", help="the run's validation loss at this checkpoint")
    add("--held-out-text", type=Path, metavar="FILE", help="text (or .npy of token ids) to measure that loss on")
    add("--loss-tolerance", type=float, metavar="NATS", help="accepted above it; default: half the way to chance")
    options = parser.parse_args(arguments)
    if (options.expected_loss is None) != (options.held_out_text is None):
        parser.error("--expected-loss and --held-out-text go together")
    if text := options.held_out_text:  # it is read when all is converted: too late to be told
        if not text.is_file():
            parser.error(f"--held-out-text {text}: there is no such file")
        if text.suffix != ".npy" and not options.tokenizer:
            parser.error(f"--held-out-text {text}: a text needs --tokenizer; token ids can be given as a .npy file")
    if options.loss_tolerance is not None and options.expected_loss is None:
        parser.error("--loss-tolerance needs --expected-loss")
    return options


def _iteration(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected an iteration, a number of at least 0")
    return int(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?)B?", text, re.IGNORECASE)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size like 5GB, 500MB or 2GiB")
    return int(int(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


class _Bar:
    """A bar on a terminal, nothing elsewhere: ``with _Bar() as progress``."""

    def __enter__(self) -> Progress | None:
        if not sys.stderr.isatty():
            self._bar: Any = None
            return None
        from tqdm import tqdm

        self._bar = tqdm(unit="B", unit_scale=True, desc="converting", dynamic_ncols=True)
        return self._show

    def _show(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_details: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
