"""One checkpoint to a Hugging Face model directory: read, map, write, check, and only then give it its name."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from autoeval.convert import buffers
from autoeval.convert.architectures import ARCHITECTURES
from autoeval.convert.errors import BadWeights, ConversionError, OutputError, Quarantined, SourceChanged
from autoeval.convert.loss import ExpectedLoss, check_loss
from autoeval.convert.mapping import mapping_digest
from autoeval.convert.preparation import Prepared, changed, check_dtype, fingerprint_of, prepare
from autoeval.convert.receipt import Receipt, read_receipt, receipt_of, write_receipt
from autoeval.convert.tokenizer import TokenizerSource
from autoeval.convert.workplace import Workplace, quarantine
from autoeval.convert.writer import SHARD_BYTES, Progress, Receiver, Written, check_layout, size_of, write_model

_TOKENIZER_ROOM = 32 * 1024**2


def convert(
    source: Path,
    output: Path,
    *,
    tokenizer: TokenizerSource | None,
    dtype: str = "auto",
    max_shard_bytes: int = SHARD_BYTES,
    expected_loss: ExpectedLoss | None = None,
    verify: bool = False,
    progress: Progress | None = None,
    receiver: Receiver | None = None,
) -> Receipt:
    """Convert the iteration directory ``source`` to ``output``; a conversion made before is reused by its receipt.

    ``dtype`` is ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``. Without a tokenizer the padded
    vocabulary is kept. ``expected_loss`` measures the model on a text, ``verify`` compares it with Megatron (which
    starts Megatron's parallel state in this process); what they find is in the receipt. ``progress`` is called with
    bytes written and bytes in all. ``receiver`` is given the tensors on their way, unless they were written before.

    Raises ``ConversionError``; then ``output`` is as it was. Its kinds: ``SourceChanged``, ``OutputError`` (both worth
    another try) and ``Quarantined`` (a check failed; nothing may be scored, what was made is moved aside).
    """
    check_dtype(dtype)
    source, output = Path(source), Path(output)
    started = time.time()
    before = fingerprint_of(source)
    if (made := _made_before(source, output, before, tokenizer, dtype)) and _answers(made, expected_loss, verify):
        return made
    with Workplace(output) as place:
        if made := _made_before(source, output, before, tokenizer, dtype):
            return check(output, expected_loss=expected_loss, verify=verify and made.verified is None)
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output}: is not a directory")
        if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
            raise ConversionError(f"{output}: exists and is not a model directory; it is left alone")
        here = place.directory
        with _blaming(source, before, here, output):
            prepared = prepare(source, tokenizer, dtype, here)
            tee = None if receiver is None else _Tee(receiver, source, before)
            written = _write(prepared, here, output, max_shard_bytes, progress, tee)
        if changed(source, before):
            raise SourceChanged(f"{source}: changed while it was read; the conversion is discarded")
        receipt = receipt_of(prepared, written.digests, before, dtype, tokenizer, started)
        receipt = replace(receipt, files={path.name: path.stat().st_size for path in sorted(here.iterdir())})
        receipt = _checked(source, here, output, receipt, expected_loss, verify)
        write_receipt(here, receipt)
        place.publish()
    return receipt


@contextmanager
def _blaming(source: Path, before: str, here: Path, output: Path) -> Iterator[None]:
    """Say what went wrong by its cause: a checkpoint that changed under the reader looks like a damaged one."""
    try:
        yield
    except (Quarantined, OutputError):
        raise
    except (ConversionError, OSError) as error:
        if changed(source, before):
            raise SourceChanged(f"{source}: was deleted or saved again while it was read ({error})") from error
        if isinstance(error, BadWeights):
            for half_written in here.glob("*.safetensors"):
                half_written.unlink()
            raise quarantine(here, output, f"{source}: {error}") from error
        if isinstance(error, OSError):
            raise OutputError(f"{error.filename or output}: {error.strerror or error}") from error
        raise


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _TOKENIZER_ROOM:
        raise OutputError(
            f"{directory.parent}: no space left for the converted model: {needed / 1e9:.2f} GB of weights, "
            f"{free / 1e9:.2f} GB free"
        )


@dataclass(frozen=True)
class _Tee:
    """``receiver``, which is told of the end only when ``source`` is still the save that it was ``before``."""

    receiver: Receiver
    source: Path
    before: str

    def begin(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return self.receiver.begin(directory, shapes)

    def take(self, name: str, dtype: str, content: memoryview) -> None:
        self.receiver.take(name, dtype, content)

    def end(self) -> None:
        if changed(self.source, self.before):
            raise SourceChanged(f"{self.source}: changed while it was read; the conversion is discarded")
        self.receiver.end()


def _write(
    prepared: Prepared,
    here: Path,
    output: Path,
    max_shard_bytes: int,
    progress: Progress | None,
    receiver: Receiver | None = None,
) -> Written:
    from transformers import GenerationConfig

    config = prepared.config
    config.save_pretrained(here)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, do_sample=False
    ).save_pretrained(here)
    tensors, dtype = prepared.tensors, prepared.dtype
    size = size_of(tensors, dtype)
    if progress:
        progress(0, size)  # the caller may make room now
    _check_space(here, size)
    if receiver is not None and not receiver.begin(here, {tensor.name: tensor.shape for tensor in tensors}):
        receiver = None
    try:
        written = write_model(
            here, tensors, dtype, max_shard_bytes=max_shard_bytes, progress=progress, receiver=receiver
        )
    finally:
        buffers.release()
    try:
        check_layout(here, tensors, written, dtype)
    except ConversionError as error:
        raise quarantine(here, output, str(error)) from error
    return written


def _made_before(
    source: Path, output: Path, fingerprint: str, tokenizer: TokenizerSource | None, dtype: str
) -> Receipt | None:
    """The receipt of what stands at ``output``, when converting again would give the same."""
    receipt = read_receipt(output)
    if receipt is None or receipt.fingerprint != fingerprint or receipt.requested_dtype != dtype:
        return None
    if receipt.tokenizer_fingerprint != (tokenizer.fingerprint() if tokenizer else None):
        return None
    if receipt.mapping not in {mapping_digest(a) for a in ARCHITECTURES if a.name == receipt.architecture}:
        return None
    if receipt.source != str(source.resolve()):  # pinned anew: a later check looks for the checkpoint where it is now
        receipt = replace(receipt, source=str(source.resolve()))
        write_receipt(output, receipt)
    return receipt


def _answers(receipt: Receipt, expected_loss: ExpectedLoss | None, verify: bool) -> bool:
    """Whether every check that is asked for has been made."""
    loss_known = expected_loss is None or expected_loss.answered_by(receipt.loss)
    return loss_known and not (verify and receipt.verified is None)


def check(output: Path, *, expected_loss: ExpectedLoss | None = None, verify: bool = False) -> Receipt:
    """Check a conversion made before against its source (which must still be there to ``verify``) and note the result
    in its receipt. Raises ``Quarantined`` when a check fails, ``ConversionError`` when it cannot be made."""
    done = read_receipt(output)
    if done is None:
        raise ConversionError(f"{output}: no converted model with its receipt")
    source = Path(done.source)
    if verify and changed(source, done.fingerprint):
        raise SourceChanged(f"{source}: is not the save that {output} was converted from")
    if expected_loss is not None and expected_loss.answered_by(done.loss):
        expected_loss = None
    receipt = _checked(source, output, output, done, expected_loss, verify)
    if receipt != done:
        write_receipt(output, receipt)
    return receipt


def _checked(
    source: Path, here: Path, output: Path, receipt: Receipt, expected_loss: ExpectedLoss | None, verify: bool
) -> Receipt:
    """The receipt with what the checks found; a failed one quarantines what is ``here``."""
    if expected_loss is not None:
        loss = check_loss(here, expected_loss)
        receipt = replace(receipt, loss=loss.to_json())
        if not loss.passed:
            raise quarantine(
                here,
                output,
                f"{source}: the converted model's loss on {loss.text} is {loss.loss:.3f} nats per token, "
                f"{loss.difference:.3f} above the run's own {loss.expected:.3f} (at most {loss.limit:.3f} accepted)",
                receipt=receipt.to_json(),
            )
    if verify:
        from autoeval.convert.verify import verify as compare

        verification = compare(source, here, receipt.checksum)
        receipt = replace(receipt, verified=verification.to_json())
        if not verification.passed:
            raise quarantine(here, output, f"{source}: {verification}", receipt=receipt.to_json())
    return receipt
