"""Artifacts: each checkpoint's result files, and the checkpoint artifact of the training run that they were made from.

Megatron-LM logs a checkpoint as the artifact ``<name of the save directory>:iter_NNNNNNN`` of its own W&B run, and
writes that run's ``<entity>/<project>`` beside the checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorder.ledger import CheckpointRow
from recorder.untrusted import read_regular
from recorder.wandb_rows import content_hash

MEGATRON_TRACKER = "latest_wandb_artifact_path.txt"
TYPE = "checkpoint-evaluation"


@dataclass(frozen=True)
class ResultsArtifact:
    """The result files of one save. ``source`` is the full name of Megatron's artifact, where it logs any."""

    name: str
    alias: str
    files: tuple[Path, ...]
    metadata: dict[str, Any]
    source: str | None
    key: str
    digest: str


def results_artifacts(work_dir: Path, model: str, saves: Sequence[CheckpointRow]) -> list[ResultsArtifact]:
    """For each current save of ``model`` that is through and has result files, by iteration."""
    found = []
    for save in saves:
        if save.model != model or save.superseded or save.state not in ("evaluated", "recorded", "failed"):
            continue
        directory = work_dir / model / f"iter_{save.iteration:07d}" / "results"
        files = tuple(sorted(directory.rglob("*.json"))) if directory.is_dir() else ()
        if files:
            found.append(
                ResultsArtifact(
                    name=re.sub(r"[^A-Za-z0-9_.-]", "-", f"{model}-evaluation")[:128],
                    alias=f"iter_{save.iteration:07d}",
                    files=files,
                    metadata={"model": model, "iteration": save.iteration, "fingerprint": save.fingerprint}
                    | ({} if save.tokens is None else {"tokens": save.tokens}),
                    source=megatron_artifact(Path(save.path)),
                    key=f"{model}:{save.iteration}",
                    digest=content_hash([save.fingerprint, *(_mark(file) for file in files)]),
                )
            )
    return found


def _mark(file: Path) -> list[Any]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns]


def megatron_artifact(checkpoint: Path) -> str | None:
    """``entity/project/name:alias`` of the artifact that Megatron logged for ``checkpoint``; ``None`` when it logs none."""
    try:
        place = read_regular(checkpoint.parent / MEGATRON_TRACKER, 4096).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return None
    return f"{place}/{checkpoint.parent.stem}:{checkpoint.stem}"
