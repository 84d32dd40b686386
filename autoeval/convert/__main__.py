"""``python -m autoeval.convert CHECKPOINT_DIR OUTPUT_DIR``: one Megatron checkpoint to a Hugging Face directory.

Exit code 0 when converted (and verified, with --verify), 1 when not, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from autoeval.convert import ConversionError, convert
    from autoeval.convert.tokenizer import tokenizer_source

    try:
        source = _iteration_directory(options.checkpoint_dir, options.iteration)
        tokenizer = tokenizer_source(options.tokenizer) if options.tokenizer else None
        receipt = convert(source, options.output_dir, tokenizer=tokenizer, dtype=options.dtype, progress=_progress())
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.output_dir}: {receipt.architecture}, {receipt.parameters:,} parameters, {receipt.dtype}, "
        f"from {source} (checksum {receipt.checksum[:12]})"
    )
    if tokenizer is None:
        print("no --tokenizer given: the padded vocabulary was kept and no tokenizer written")
    return _verify(source, options.output_dir) if options.verify else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autoeval.convert", description=__doc__)
    parser.add_argument("checkpoint_dir", type=Path, metavar="CHECKPOINT_DIR", help="the save directory, or an iter_…")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--iteration", type=int, metavar="N", help="default: the one that the tracker file names")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face directory, a SentencePiece .model file, or vocab.json,merges.txt (or a directory with both)",
    )
    parser.add_argument("--verify", action="store_true", help="compare logits with Megatron's own on the CPU")
    return parser


def _iteration_directory(directory: Path, iteration: int | None) -> Path:
    """``directory`` itself when it is one iteration's, otherwise the one asked for or named by the tracker."""
    from autoeval.convert import ConversionError

    if re.fullmatch(r"iter_\d+|release", directory.name) and not (directory / TRACKER).exists():
        if iteration is not None and directory.name != f"iter_{iteration:07d}":
            raise ConversionError(f"{directory}: is not iteration {iteration}")
        return directory
    if iteration is None:
        try:
            text = (directory / TRACKER).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConversionError(
                f"{directory / TRACKER}: {error.strerror}; give --iteration or an iter_ dir"
            ) from error
        if text == "release":
            return directory / "release"
        if not text.isdigit():
            raise ConversionError(f"{directory / TRACKER}: holds {text!r}, expected an iteration; give --iteration")
        iteration = int(text)
    return directory / f"iter_{iteration:07d}"


def _progress() -> Callable[[int, int], None] | None:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        filled = 40 * done // max(total, 1)
        line = f"\r[{'#' * filled}{'.' * (40 - filled)}] {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        print(line, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _verify(source: Path, output: Path) -> int:
    from autoeval.convert import ConversionError
    from autoeval.convert.verify import TOLERANCE, megatron_is_installed, verify

    if not megatron_is_installed():
        print("error: NOT verified: --verify needs megatron-core, which is not installed", file=sys.stderr)
        return 1
    try:
        found = verify(source, output)
    except ConversionError as error:
        print(f"error: NOT verified: {error}", file=sys.stderr)
        return 1
    text = (
        f"largest logit difference {found.difference:.2e} (at most {TOLERANCE:g}), "
        f"argmax equal at {found.same_argmax} of {found.positions} positions"
    )
    print(f"verified against Megatron: {text}" if found.passed else f"verification FAILED: {text}")
    if not found.passed:
        quarantine = output.with_name(f"{output.name}.quarantined")
        shutil.rmtree(quarantine, ignore_errors=True)
        output.rename(quarantine)
        print(f"moved to {quarantine}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
