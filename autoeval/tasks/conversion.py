"""From a checkpoint to a Hugging Face model directory that can be trusted: room, conversion, receipt, verification."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints import CheckpointChanged, fingerprint
from autoeval.tasks.converted import make_room, quarantine
from autoeval.tasks.plan import EvaluationPlan
from recorder.files import write_json

if TYPE_CHECKING:
    from autoeval.convert.receipt import Receipt

logger = logging.getLogger("autoeval.worker")

VERIFY_BELOW_PARAMETERS = 1_000_000_000  # Megatron's own model is built beside ours, both in fp32 on the CPU
VERIFY_SECONDS = 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT}


def prepare_model(plan: EvaluationPlan, emit: Callable[..., None]) -> None:
    """Make ``plan.converted`` a Hugging Face model directory (or find it made already), checked as the plan says.

    Raises ``ConversionError``, ``NoRoomError`` and ``CheckpointChanged``; a model that failed a check is quarantined.
    """
    emit("converting")
    if plan.format == "huggingface":
        refuse_other_save(plan)
        emit("converted", seconds=0.0)
        return
    started = time.monotonic()
    receipt = _convert(plan)
    if receipt.fingerprint != plan.checkpoint.fingerprint:
        raise CheckpointChanged(f"{plan.source} was saved again before it could be read")
    record = receipt.to_json()
    emit("converted", seconds=round(time.monotonic() - started, 3))
    if (verification := _verification_due(plan, receipt)) is not None:
        record["verification"] = _verify(plan, receipt, verification)
    write_json(Path(plan.directory, "receipt.json"), record)


def _convert(plan: EvaluationPlan) -> Receipt:
    from autoeval.convert import ConversionError, TokenizerSource, convert

    files = plan.tokenizer
    if files is None:
        raise ValueError(f"{plan.source}: a Megatron checkpoint needs a tokenizer in the configuration")
    tokenizer = TokenizerSource(
        kind=files.kind,
        vocab_path=Path(files.vocab_path) if files.vocab_path else None,
        merge_path=Path(files.merge_path) if files.merge_path else None,
        path=Path(files.path) if files.path else None,
    )

    def before_the_first_byte(done: int, total: int) -> None:
        if done == 0:
            make_room(plan.converted, total, plan.conversion.budget_bytes)

    try:
        return convert(Path(plan.source), plan.converted, tokenizer=tokenizer, progress=before_the_first_byte)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ConversionError(
            f"{plan.converted}: the disk became full while the converted model was written; make room and run "
            "evaluator.py --retry"
        ) from error


def source_unchanged(plan: EvaluationPlan) -> bool:
    try:
        return fingerprint(Path(plan.source)) == plan.checkpoint.fingerprint
    except OSError:
        return False


def refuse_other_save(plan: EvaluationPlan) -> None:
    if not source_unchanged(plan):
        raise CheckpointChanged(f"{plan.source} was deleted or saved again before it was evaluated")


def _verification_due(plan: EvaluationPlan, receipt: Receipt) -> Path | None:
    """Where the run's verification is noted, when this conversion is to be verified; the log says why when it is not.

    ``first`` means: until a conversion by the same mapping has passed.
    """
    from autoeval.convert.errors import ConversionError
    from autoeval.convert.verify import megatron_is_installed

    mode, note = plan.conversion.verify, Path(plan.directory).parent / "verification.json"
    if mode == "never":
        return None
    if not megatron_is_installed():
        if mode == "always":
            raise ConversionError("model.verify is 'always', but megatron-core is not installed")
        logger.info("not verified against Megatron: megatron-core is not installed")
        return None
    if mode == "always":
        return note
    if receipt.parameters >= VERIFY_BELOW_PARAMETERS:
        logger.info("not verified against Megatron: %d parameters; model.verify: always insists", receipt.parameters)
        return None
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return note
    return None if known.get("passed") and known.get("mapping") == receipt.mapping else note


def _verify(plan: EvaluationPlan, receipt: Receipt, note: Path) -> dict[str, Any]:
    """Compare with Megatron's own logits, in a process of its own: Megatron takes the whole process for itself."""
    from autoeval.convert.errors import ConversionError

    command = [sys.executable, "-m", "autoeval.tasks.verification", plan.source, str(plan.converted)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        timeout=VERIFY_SECONDS, check=False,
    )  # fmt: skip
    lines = ended.stdout.splitlines()
    if ended.returncode != 0 or not lines:
        raise ConversionError(f"{plan.converted}: the verification ended with code {ended.returncode} (see worker.log)")
    found: dict[str, Any] = json.loads(lines[-1])
    if "unable" in found:
        if plan.conversion.verify == "always":
            raise ConversionError(f"{plan.converted}: not verified: {found['unable']}")
        logger.warning("not verified against Megatron: %s", found["unable"])
        return found
    text = (
        f"largest logit difference {found['difference']:.2e} (at most {found['tolerance']:g}), argmax equal at "
        f"{found['same_argmax']} of {found['positions']} positions"
    )
    write_json(note, {**found, "mapping": receipt.mapping, "iteration": plan.checkpoint.iteration})
    if not found["passed"]:
        place = quarantine(plan.converted)
        raise ConversionError(f"differs from Megatron's own logits: {text}; quarantined as {place}")
    logger.info("verified against Megatron: %s", text)
    return found
