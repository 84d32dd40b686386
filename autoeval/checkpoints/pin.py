"""Keeps a checkpoint readable although the training run deletes it: hard links cost no space and outlive ``rmtree``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.layout import RANK_DIRECTORY, fingerprint, is_foreign, list_files
from autoeval.checkpoints.readiness import inspect

logger = logging.getLogger(__name__)

_GONE = {errno.ENOENT, errno.ESTALE}
# What no conversion reads: holding it would cost as much again as the model, or twice, after retention deleted it. The
# shards of a distributed checkpoint can't be told apart so: any of them may hold any tensor.
_NEVER_READ = re.compile(
    r"(distrib_optim|layer_wise_optimizer_\w+|train_dataloader\w*|optim(izer\w*)?|scheduler\w*|scaler\w*)\.(pt|bin)"
    r"|(rng_state|random_states)\w*\.(pth|pkl)"
)
_READ_DIRECTORY = re.compile(f"{RANK_DIRECTORY.pattern}|tokenizer")


class CheckpointVanished(Exception):
    """The checkpoint, or a file of it, was deleted before it could be pinned."""


class CheckpointChanged(Exception):
    """The files are not those that were found complete: the iteration is being saved again."""


@contextlib.contextmanager
def pinned(checkpoint: Checkpoint, staging: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[Checkpoint]:
    """Yield the same checkpoint under ``staging``, where retention can't reach it; remove the links afterwards, unless
    ``keep`` says then that somebody else reads them still. What is pinned there already stays as it is.

    Where hard links are impossible (another file system, not permitted) the original is yielded: then the reader can
    still lose it. A save in place writes into the very same files: ask ``unchanged`` after reading. Raises
    ``CheckpointVanished`` and ``CheckpointChanged``.
    """
    _verify(checkpoint)
    held = staging / pin_name(checkpoint.model, checkpoint.iteration, checkpoint.fingerprint)
    there = replace(checkpoint, path=held)
    if not unchanged(there):
        shutil.rmtree(held, ignore_errors=True)
    try:
        yielded = there if held.is_dir() or _link_all(checkpoint.path, held) else checkpoint
        if not unchanged(yielded):  # what the links hold counts: the original may be gone by now
            _verify(checkpoint)
            raise CheckpointChanged(f"{checkpoint.path} changed while it was pinned")
        yield yielded
    finally:
        if not keep():
            shutil.rmtree(held, ignore_errors=True)


def pin_name(model: str, iteration: int, fingerprint: str) -> str:
    """What a pinned checkpoint's directory is called: the same for every process."""
    name = re.sub(r"[^\w.-]", "_", model)
    return f"{name}-iter_{iteration:07d}-{fingerprint[:8]}"


def unchanged(checkpoint: Checkpoint) -> bool:
    """Whether the files at ``checkpoint.path`` still are those of its fingerprint."""
    try:
        return fingerprint(checkpoint.path) == checkpoint.fingerprint
    except OSError:
        return False


def sweep_pins(staging: Path) -> None:
    """Remove what a killed process left in ``staging``. Links only: no checkpoint loses anything."""
    if staging.is_dir():
        for left in staging.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)


def _verify(checkpoint: Checkpoint) -> None:
    try:
        listing = list_files(checkpoint.path)
        found = inspect(checkpoint.path, listing)
    except OSError as error:
        raise CheckpointVanished(f"{checkpoint.path}: {error.strerror}") from error
    if found.fingerprint == checkpoint.fingerprint:
        return
    if found.missing:
        raise CheckpointVanished(f"{checkpoint.path} was deleted, or is being deleted: {found.problem}")
    raise CheckpointChanged(f"{checkpoint.path} is no longer the save that was found complete: it was saved again")


def _link_all(source: Path, target: Path) -> bool:
    """Link what an evaluation may read of ``source`` under ``target``. False where that is impossible."""
    try:
        for name in _files_to_read(source):
            there = target / name
            there.parent.mkdir(parents=True, exist_ok=True)
            if is_foreign(source / name):
                raise CheckpointChanged(f"{source / name} is a link to a file of another user, which is not followed")
            # A link to a symbolic link would dangle when the latter's target goes: link the file itself.
            os.link(os.path.realpath(source / name), there)
    except OSError as error:
        if error.errno in _GONE:
            raise CheckpointVanished(f"{error.filename} was deleted before it could be pinned") from error
        shutil.rmtree(target, ignore_errors=True)
        logger.warning("%s is read in place, it can't be linked to %s: %s", source, target.parent, error.strerror)
        return False
    return True


def _files_to_read(source: Path) -> list[Path]:
    found: list[Path] = []
    for entry in source.iterdir():
        if not entry.is_dir():
            found.append(entry)
        elif _READ_DIRECTORY.fullmatch(entry.name):
            found += [file for file in entry.rglob("*") if not file.is_dir()]
    return [name for file in found if is_read((name := file.relative_to(source)).as_posix())]


def is_read(name: str) -> bool:
    """Whether an evaluation may read the file ``name`` (relative to the checkpoint, with ``/``)."""
    directory, _, file = name.rpartition("/")
    in_place = not directory or _READ_DIRECTORY.fullmatch(directory.partition("/")[0]) is not None
    return in_place and not _NEVER_READ.fullmatch(file)
