"""Pins a checkpoint that lies in a store: what a conversion reads of it, copied to the disk here.

Of a distributed checkpoint ``.metadata`` says which bytes hold which tensor: the optimizer's states, which are most of it,
are left out, and the files have holes in their place. Of the other layouts whole files are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.copies import Origin, marks_of, note_origin, read_origin, remove_copy
from autoeval.checkpoints.dcp_metadata import MAX_METADATA_BYTES, DcpMetadata, DcpMetadataError, parse_dcp_metadata
from autoeval.checkpoints.layout import DCP_FORMATS, fingerprint_of, format_by_names
from autoeval.checkpoints.pin import CheckpointChanged, CheckpointVanished, is_read
from autoeval.checkpoints.place import StoredPlace, read_file
from autoeval.checkpoints.saves import listing_of
from autoeval.storage import Changed, ObjectStore, StoredObject, Transfer, Vanished, Wanted

# Keys of a distributed checkpoint that no conversion reads. What is not known to be one is copied.
_NEVER_READ_KEY = re.compile(r"(chained_\d+\.)?optimizer\.")
GAP_BYTES = 4 << 20  # what is not needed, but shorter than this between what is, comes with it: requests cost time too


@dataclass(frozen=True)
class Copying:
    """The copy of ``checkpoint`` as it was listed: ``needed`` bytes come over the wire, those here already counted out."""

    checkpoint: Checkpoint
    transfer: Transfer
    names: tuple[str, ...]
    needed: int

    def run(self) -> None:
        """Copy, then mark the copy as whole. Raises ``CheckpointVanished`` and ``CheckpointChanged`` (nothing is left
        then), and what ``Transfer.run`` raises besides (then the next attempt goes on with what is there)."""
        checkpoint = self.checkpoint
        origin = Origin(checkpoint.url, checkpoint.fingerprint, checkpoint.iteration, checkpoint.format)
        target = checkpoint.path
        target.parent.mkdir(parents=True, exist_ok=True)
        before = read_origin(target)
        if before is None or (before.url, before.fingerprint) != (origin.url, origin.fingerprint):
            remove_copy(target)
        note_origin(target, origin)
        try:
            self.transfer.run()
        except Vanished as error:
            remove_copy(target)
            raise CheckpointVanished(str(error)) from error
        except Changed as error:
            remove_copy(target)
            raise CheckpointChanged(str(error)) from error
        marks = marks_of(target, list(self.names))
        note_origin(target, replace(origin, files=marks))


def is_copied(checkpoint: Checkpoint) -> bool:
    """Whether the whole copy of ``checkpoint`` is here."""
    origin = read_origin(checkpoint.path)
    return origin is not None and origin.whole and origin.fingerprint == checkpoint.fingerprint


def plan_copy(
    checkpoint: Checkpoint, store: ObjectStore, *, parallel: int = 4, stop: Callable[[], bool] = lambda: False
) -> Copying:
    """Look what there is to copy. Raises ``CheckpointVanished``, ``CheckpointChanged`` and ``StorageError``."""
    within = checkpoint.url.removeprefix(f"{store.url}/")
    objects = store.objects(within)
    _verify(checkpoint, StoredPlace(store, within, objects), objects)
    wanted = _wanted(checkpoint, StoredPlace(store, within, objects), objects)
    transfer = Transfer(store, within, checkpoint.path, wanted, parallel=parallel, stop=stop)
    needed = sum(file.needed for file in transfer.missing())
    return Copying(checkpoint, transfer, tuple(file.stored.name for file in wanted), needed)


def _verify(checkpoint: Checkpoint, place: StoredPlace, objects: dict[str, StoredObject]) -> None:
    if not objects:
        raise CheckpointVanished(f"{checkpoint.url} was deleted before it could be copied")
    listing = listing_of(objects.values())
    if fingerprint_of(place, listing, format_by_names(place, listing)) == checkpoint.fingerprint:
        return
    from autoeval.checkpoints.readiness import inspect

    found = inspect(place, listing)
    if found.missing:
        raise CheckpointVanished(f"{checkpoint.url} was deleted, or is being deleted: {found.problem}")
    raise CheckpointChanged(f"{checkpoint.url} was uploaded again before it could be copied")


def _wanted(checkpoint: Checkpoint, place: StoredPlace, objects: dict[str, StoredObject]) -> list[Wanted]:
    read = {name: stored for name, stored in objects.items() if is_read(name)}
    if checkpoint.format not in DCP_FORMATS:
        return [Wanted(stored) for stored in read.values()]
    try:
        metadata = parse_dcp_metadata(read_file(place / ".metadata", MAX_METADATA_BYTES), name=str(place / ".metadata"))
    except FileNotFoundError as error:
        raise CheckpointVanished(f"{place / '.metadata'} was deleted before it could be copied") from error
    except DcpMetadataError as error:
        raise CheckpointChanged(str(error)) from error
    ranges = needed_ranges(metadata)
    return [Wanted(stored, ranges.get(name, ()) if name.endswith(".distcp") else None) for name, stored in read.items()]


def needed_ranges(metadata: DcpMetadata) -> dict[str, tuple[tuple[int, int], ...]]:
    """(begin, end) in bytes, in each storage file, of all that a conversion may read."""
    found: dict[str, list[tuple[int, int]]] = {}
    for item in metadata.items:
        if not _NEVER_READ_KEY.match(item.key):
            found.setdefault(item.file, []).append((item.offset, item.offset + item.length))
    return {file: tuple(_joined(parts)) for file, parts in found.items()}


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        if joined and begin - joined[-1][1] <= GAP_BYTES:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
