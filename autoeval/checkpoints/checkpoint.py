"""The noun that leaves this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """One complete save on disk.

    ``format`` is ``torch_dist``, ``fsdp_dtensor`` (``torch_dcp`` is the same on disk), ``torch`` (Megatron's legacy
    layout) or ``huggingface``. ``fingerprint`` is a hash of file names, sizes and modification times: an iteration
    saved again is a different checkpoint. ``tokens`` counts billions of training tokens seen, when the configuration
    says how many an iteration takes. ``url`` is where one is that lies in a store; ``path`` is then where its copy will
    be, and the fingerprint is made of ETags.
    """

    model: str
    iteration: int
    path: Path
    format: str
    fingerprint: str
    tokens: float | None = None
    url: str = ""

    @property
    def where(self) -> str:
        """For people: where the training run has put it."""
        return self.url or str(self.path)
