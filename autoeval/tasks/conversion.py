"""From a checkpoint to a Hugging Face model directory that can be trusted: room, conversion, receipt, verification."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.checkpoints import CheckpointChanged, fingerprint
from autoeval.diagnosis.log_lines import validation_loss_at
from autoeval.storage import StorageError, is_url
from autoeval.tasks.converted import make_room
from autoeval.tasks.loaded import Incoming, LoadedModel
from autoeval.tasks.plan import EvaluationPlan, TokenizerFiles
from recorder.files import write_json

if TYPE_CHECKING:
    from autoeval.convert.loss import ExpectedLoss
    from autoeval.convert.receipt import Receipt

logger = logging.getLogger("autoeval.worker")

VERIFY_BELOW_PARAMETERS = 1_000_000_000  # Megatron's own model is built beside ours, both in fp32 on the CPU
VERIFY_SECONDS = 3600.0
VISIBLE_SECONDS = 60.0  # for a file to appear on a network file system after another machine has written it


class Preparation:
    """A checkpoint on its way to a loaded model.

    Where the module of the last checkpoint can take the weights, they go into it while they are converted, and the model
    can be asked before its files are on the disk. Nothing may be recorded of it before ``finish``, which waits for
    the files, the receipt and the checks.
    """

    def __init__(self, plan: EvaluationPlan, loaded: LoadedModel, ahead: Ahead, emit: Callable[..., None]) -> None:
        """Raises ``ConversionError``, ``NoRoomError`` and ``CheckpointChanged``; a model that failed a check is
        quarantined."""
        self.plan, self._loaded = plan, loaded
        self._incoming: Incoming | None = None
        self._conversion: Future[Receipt] | None = None
        started = time.monotonic()
        emit("converting")
        if plan.format == "huggingface":
            refuse_other_save(plan)
        else:
            ahead.wait_for(plan)
            if _nothing_to_wait_for(plan):
                self._incoming = loaded.receiver(plan.model)
            self._begin()
        emit("converted", seconds=round(time.monotonic() - started, 3))

    def _begin(self) -> None:
        if self._incoming is None:
            _accept(self.plan, _convert(self.plan))
            return
        pool, settled = ThreadPoolExecutor(1, "conversion"), self._incoming.settled
        refuse_other_save(self.plan)  # what is put into the module is this save or, as the conversion will say, none
        self._conversion = pool.submit(_convert, self.plan, receiver=self._incoming)
        self._conversion.add_done_callback(lambda _: settled.set())
        pool.shutdown(wait=False)
        settled.wait()
        if not self._incoming.complete:  # it was converted before, does not fit the module, or failed
            self._incoming = None
            self.finish()

    def model(self) -> Any:
        if self._incoming is not None:
            return self._incoming.model(self.plan.converted)
        return self._loaded.load(self.plan.converted, self.plan.model)

    def finish(self) -> None:
        """Returns when the model's files can be trusted. Raises as the constructor does."""
        if self._conversion is not None:
            conversion, self._conversion = self._conversion, None
            try:
                _accept(self.plan, conversion.result())
            except BaseException:
                self._loaded.drop()  # whatever is in the module, it is not to be asked
                raise

    def end(self) -> None:
        """After this nothing of it is under way, whatever became of it."""
        if self._conversion is not None:
            wait([self._conversion])
            self._conversion = None
            self._loaded.drop()


class Converted:
    """A checkpoint that another process has converted, on its way to a loaded model; asked as ``Preparation`` is."""

    def __init__(self, plan: EvaluationPlan, loaded: LoadedModel) -> None:
        """Raises ``OSError`` when the converted model is not there, ``CheckpointChanged`` when the save is another."""
        self.plan, self._loaded = plan, loaded
        if plan.format == "huggingface":
            refuse_other_save(plan)
        else:
            _await_receipt(plan)

    def model(self) -> Any:
        return self._loaded.load(self.plan.converted, self.plan.model)

    def finish(self) -> None:
        """Its files can be trusted already."""


def convert_for_others(plan: EvaluationPlan, emit: Callable[..., None], in_use: Path | None) -> None:
    """Convert, with every check that is due, for other processes to load. Raises as ``Preparation`` does."""
    started = time.monotonic()
    emit("converting")
    _accept(plan, _convert(plan, in_use=in_use))
    emit("converted", seconds=round(time.monotonic() - started, 3))


def is_converted(plan: EvaluationPlan) -> bool:
    """Whether the converted model is there, and whole, and of this very save."""
    from autoeval.convert import read_receipt

    receipt = read_receipt(plan.converted)
    return receipt is not None and receipt.fingerprint == plan.checkpoint.fingerprint


def _await_receipt(plan: EvaluationPlan) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not is_converted(plan):
        if time.monotonic() > deadline:
            raise OSError(f"{plan.converted}: the converted model is not to be seen from {socket.gethostname()}")
        time.sleep(1.0)


def _accept(plan: EvaluationPlan, receipt: Receipt) -> None:
    if receipt.fingerprint != plan.checkpoint.fingerprint:
        raise CheckpointChanged(f"{plan.source} was saved again before it could be read")
    receipt = _verified(plan, receipt)
    # The converted model's own receipt names what was read, a pin: this copy is for people, and outlives it.
    write_json(Path(plan.directory, "receipt.json"), {**receipt.to_json(), "source": plan.checkpoint.path})


class Ahead:
    """Conversion of the checkpoint that will probably be next, in a thread, while another one is evaluated.

    It goes to the disk, so memory holds a few tensors of it. What goes wrong with it is found again, and told, when its
    turn comes.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "conversion ahead")
        self._going: dict[Path, Future[Any]] = {}

    def begin(self, plan: EvaluationPlan, in_use: Path | None) -> None:
        """Convert ``plan``'s checkpoint; ``in_use`` is the converted model that must stay."""
        if plan.format != "huggingface" and plan.converted != in_use and plan.converted not in self._going:
            self._going[plan.converted] = self._pool.submit(_convert_ahead, plan, in_use)

    def wait_for(self, plan: EvaluationPlan) -> None:
        """Until a conversion of ``plan`` that was begun has ended, however it did."""
        going = self._going.pop(plan.converted, None)
        if going is not None and not going.cancel():
            wait([going])


def _convert_ahead(plan: EvaluationPlan, in_use: Path | None) -> None:
    started = time.monotonic()
    try:
        _convert(plan, checks=False, in_use=in_use)
    except Exception as error:
        logger.info("%s is not converted ahead of its turn: %s", plan.source, error)
    else:
        logger.info("%s was converted ahead of its turn in %.2f s", plan.source, time.monotonic() - started)


def _nothing_to_wait_for(plan: EvaluationPlan) -> bool:
    """Whether no check is sure to be made of the written model, which would take memory beside the loaded one."""
    return plan.conversion.verify != "always" and _expected_loss(plan) is None


def _convert(
    plan: EvaluationPlan, receiver: Incoming | None = None, *, checks: bool = True, in_use: Path | None = None
) -> Receipt:
    from autoeval.convert import TokenizerSource, convert

    files = plan.tokenizer
    if files is None:
        raise ValueError(f"{plan.source}: a Megatron checkpoint needs a tokenizer in the configuration")
    tokenizer = TokenizerSource(
        kind=files.kind,
        vocab_path=_here(files.vocab_path, files),
        merge_path=_here(files.merge_path, files),
        path=_here(files.path, files),
    )

    def before_the_first_byte(done: int, total: int) -> None:
        if done == 0:
            make_room(plan.converted, total, plan.conversion.budget_bytes, in_use)

    return convert(
        Path(plan.source),
        plan.converted,
        tokenizer=tokenizer,
        expected_loss=_expected_loss(plan) if checks else None,
        progress=before_the_first_byte,
        receiver=receiver,
    )


def _here(path: str | None, files: TokenizerFiles) -> Path | None:
    """A URL's copy in the cache. Raises ``StorageError`` when the store has not answered for two minutes."""
    if not path or not is_url(path):
        return Path(path) if path else None
    from autoeval.storage.cached import cached_path

    for seconds in (1, 4, 15, 30, 60):
        try:
            return cached_path(path, files.storage_options)
        except StorageError as error:
            if error.lasting:
                raise
            logger.warning("%s; again in %d s", error, seconds)
            time.sleep(seconds)
    return cached_path(path, files.storage_options)


def _expected_loss(plan: EvaluationPlan) -> ExpectedLoss | None:
    """The run's own validation loss at this checkpoint, when its log tells and there is a text to compare on."""
    from autoeval.convert import ExpectedLoss

    options = plan.conversion
    if options.log_path is None or options.validation_text is None:
        return None
    try:
        value = validation_loss_at(Path(options.log_path), plan.checkpoint.iteration)
    except OSError as error:
        logger.warning("the validation loss is not compared: %s: %s", options.log_path, error.strerror)
        return None
    if value is None:
        logger.info("the validation loss is not compared: %s has none at this iteration", options.log_path)
        return None
    return ExpectedLoss(value, Path(options.validation_text), options.validation_tolerance)


def source_unchanged(plan: EvaluationPlan) -> bool:
    try:
        return fingerprint(Path(plan.source)) == plan.checkpoint.fingerprint
    except OSError:
        return False


def refuse_other_save(plan: EvaluationPlan) -> None:
    if not source_unchanged(plan):
        raise CheckpointChanged(f"{plan.source} was deleted or saved again before it was evaluated")


def _verified(plan: EvaluationPlan, receipt: Receipt) -> Receipt:
    """Compare with Megatron's own logits when that is due; the receipt with what was found."""
    from autoeval.convert import ConversionError, read_receipt

    note = Path(plan.directory).parent / "verification.json"
    if not _verification_is_due(plan, receipt, note):
        return receipt
    answer = _ask_for_verification(plan.converted)
    verified = None if answer else read_receipt(plan.converted)
    passed = None if "unable" in answer else verified is not None
    if "changed" not in answer:  # that says nothing of this machine: the next checkpoint is verified instead
        known = {"mapping": receipt.mapping, "iteration": plan.checkpoint.iteration, "passed": passed}
        write_json(note, {**known, **answer})
    if verified is not None:
        logger.info("verified against Megatron: %s", verified.verified)
        return verified
    if "unable" not in answer:
        raise ConversionError(answer.get("failed", f"{plan.converted}: has no receipt any more"))
    if plan.conversion.verify == "always":
        raise ConversionError(f"{plan.converted}: not verified: {answer['unable']}")
    logger.warning("not verified against Megatron: %s", answer["unable"])
    return receipt


def _ask_for_verification(converted: Path) -> dict[str, str]:
    """``autoeval.tasks.verification``'s answer: Megatron takes a whole process for itself, so it gets one."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "autoeval.tasks.verification", str(converted)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=VERIFY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"unable": f"it did not end within {VERIFY_SECONDS:.0f} s"}
    lines = ended.stdout.splitlines()
    if ended.returncode != 0 or not lines:  # out of memory, perhaps
        return {"unable": f"it ended with code {ended.returncode} (see worker.log)"}
    answer: dict[str, str] = json.loads(lines[-1])
    return answer


def _verification_is_due(plan: EvaluationPlan, receipt: Receipt, note: Path) -> bool:
    """``first`` means: until a conversion of this run by the same mapping has passed, or could not be verified here.

    ``note`` is the file that remembers; the log says why it is not done.
    """
    from autoeval.convert import ConversionError
    from autoeval.convert.verify import megatron_is_installed

    mode = plan.conversion.verify
    if mode == "never" or receipt.verified is not None:
        return False
    if not megatron_is_installed():
        if mode == "always":
            raise ConversionError("model.verify is 'always', but megatron-core is not installed")
        logger.info("not verified against Megatron: megatron-core is not installed")
        return False
    if mode == "always":
        return True
    if receipt.parameters >= VERIFY_BELOW_PARAMETERS:
        logger.info("not verified against Megatron: %d parameters; model.verify: always insists", receipt.parameters)
        return False
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return known.get("passed") is False or known.get("mapping") != receipt.mapping
