"""What holds the files of one training run's checkpoints until they are evaluated, from one daemon to the next."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from autoeval.checkpoints import Checkpoint, detect_format, fingerprint, pin_name, pinned, sweep_pins
from recorder.ledger import CheckpointRow, Ledger
from recorder.results import CheckpointRef


class Pins:
    """Hard links below ``<work_dir>/.pins/<model>``.

    By model: another run may share the work directory, and its pins are not ours to sweep. ``closing``: from now on what
    is let go of stays when jobs of a cluster may be reading it.
    """

    def __init__(self, work_dir: Path, model: str, ledger: Ledger) -> None:
        self._directory = work_dir / ".pins" / model
        self._former = self._directory.with_name(f".{model}.former")
        self._model, self._ledger = model, ledger
        self.closing = False

    def hold(self, held: ExitStack, ref: CheckpointRef, checkpoint: Checkpoint) -> Checkpoint:
        """``checkpoint`` as a pinned copy, until ``held`` is closed. Raises what ``pinned`` does."""
        name = pin_name(ref.model, ref.iteration, ref.fingerprint)

        def is_read_still() -> bool:
            return self.closing and name in self._read_by_jobs()

        return held.enter_context(pinned(checkpoint, self._directory, is_read_still))

    def put_aside(self) -> None:
        """What a killed daemon had pinned may be all that is left of a checkpoint: keep it until that is known."""
        self._former.mkdir(parents=True, exist_ok=True)
        read_still = self._read_by_jobs()
        if self._directory.is_dir():
            for held in self._directory.iterdir():
                if held.name not in read_still:
                    shutil.rmtree(self._former / held.name, ignore_errors=True)
                    held.rename(self._former / held.name)

    def find(self, row: CheckpointRow) -> tuple[Path, str] | None:
        """Where a former daemon's pin of a checkpoint is, and its format."""
        there = self._directory / pin_name(row.model, row.iteration, row.fingerprint)
        pins = (there, *self._former.iterdir())
        pin = next((pin for pin in pins if _fingerprint(pin) == row.fingerprint), None)
        return None if pin is None else (pin, detect_format(pin))

    def sweep_former(self) -> None:
        """All is known: what was put aside and is wanted has been pinned anew."""
        sweep_pins(self._former)

    def _read_by_jobs(self) -> set[str]:
        """Names of the pins that jobs of a cluster may be reading: they stay where they are."""
        rows = self._ledger.jobs(self._model)
        return {pin_name(row.model, row.iteration, row.fingerprint) for row in rows if row.state == "open"}


def _fingerprint(directory: Path) -> str | None:
    try:
        return fingerprint(directory)
    except OSError:
        return None
