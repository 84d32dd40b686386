"""What a save directory looks like: names, tracker, listing, format, fingerprint.

Layouts and write order: Megatron-LM's ``checkpointing.py`` and megatron-core's ``dist_checkpointing`` as observed on
real runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from autoeval.checkpoints import contents, copies
from autoeval.checkpoints.place import Place, read_file
from recorder.untrusted import open_regular

TRACKER = "latest_checkpointed_iteration.txt"

Format = Literal["torch_dist", "fsdp_dtensor", "torch", "huggingface", "zarr", "unknown"]
DCP_FORMATS = frozenset({"torch_dist", "fsdp_dtensor"})  # PyTorch distributed checkpoints

RANK_DIRECTORY = re.compile(r"mp_rank_\d{2,}(_\d{3,}){0,2}")
# Up to 18 digits: more is no iteration, and no number that the ledger can hold.
_MEGATRON_NAME = re.compile(r"iter_([0-9]{7,18})")
_HUGGINGFACE_NAME = re.compile(r"(?:checkpoint|step|iter|global_step)[-_]?([0-9]{1,18})")
_UNDECODED = re.compile("[\ud800-\udfff]")
_DCP_WEIGHTS = re.compile(r"\.metadata|metadata\.json|common\.pt|integrity\.json|[^/]*\.distcp")
_WEIGHTS = {
    "torch_dist": _DCP_WEIGHTS,
    "fsdp_dtensor": _DCP_WEIGHTS,
    "torch": re.compile(r"mp_rank_[\d_]+/model_(optim_)?rng\.pt"),
    "huggingface": re.compile(
        r"(adapter_)?config\.json|[^/]*\.index\.json|[^/]*\.safetensors|(pytorch|adapter)_model[^/]*\.bin"
    ),
}


class FileStat(NamedTuple):
    """``name`` is relative to the checkpoint's directory, with ``/``; ``size`` in bytes; ``etag`` of a store's objects."""

    name: str
    size: int
    mtime_ns: int
    etag: str = ""


@dataclass(frozen=True)
class Listing:
    """One look at a checkpoint directory. Equal listings hold equal files, as far as ``stat`` can tell.

    ``ordered``: the files' times tell in which order they were saved. Those of uploaded objects do not.
    """

    files: tuple[FileStat, ...]
    directory_mtime_ns: int
    ordered: bool = True

    @property
    def newest_ns(self) -> int:
        return max((file.mtime_ns for file in self.files), default=0)

    @property
    def touched_ns(self) -> int:
        """Last sign of life, deletions included."""
        return max(self.newest_ns, self.directory_mtime_ns)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """``{name: (size in bytes, mtime_ns)}``; all times are 0 where they tell nothing."""
        return {file.name: (file.size, file.mtime_ns if self.ordered else 0) for file in self.files}


@dataclass(frozen=True)
class Tracker:
    """``value`` is ``None`` when there is no tracker or it can't be understood (then ``problem`` says why)."""

    value: int | Literal["release"] | None
    mtime_ns: int = 0
    problem: str = ""


def iteration_of(name: str, model_type: str = "megatron") -> int | None:
    """Iteration in a directory name; ``release`` is 0; ``None`` for other names."""
    if model_type == "megatron":
        if name == "release":
            return 0
        match = _MEGATRON_NAME.fullmatch(name)
    else:
        match = _HUGGINGFACE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def look_at_tracker(save_directory: Path) -> Tracker:
    """The tracker with its time. It is not written atomically, so it can be seen empty or cut short."""
    path = save_directory / TRACKER
    try:
        with open_regular(path) as stream:
            # The time before the content: then the content is never older than the time says.
            mtime_ns = os.fstat(stream.fileno()).st_mtime_ns
            text = stream.read(64)
    except FileNotFoundError:
        return Tracker(None)
    except OSError as error:
        return Tracker(None, problem=f"{path} cannot be read: {error.strerror}")
    return parse_tracker(text, mtime_ns, str(path))


def parse_tracker(text: bytes, mtime_ns: int, path: str) -> Tracker:
    """Of a tracker's content; ``path`` is for the message."""
    text = text.strip()
    if text == b"release":
        return Tracker("release", mtime_ns)
    if text.isdigit():
        return Tracker(int(text), mtime_ns)
    return Tracker(None, mtime_ns, f"{path} holds {text[:20]!r}, expected an iteration: still being written?")


def read_tracker(save_directory: Path) -> int | Literal["release"] | None:
    """The tracker's value, ``None`` when there is none or it is torn."""
    return look_at_tracker(save_directory).value


def list_files(directory: Path) -> Listing:
    """Names, sizes and times of the files in ``directory`` and, for Megatron's rank directories, one level below.

    Raises ``OSError`` when the directory is gone or can't be read. A file deleted while looking is left out, and so is one
    whose name is no UTF-8: no layout has such names.
    """
    directory_mtime_ns = directory.stat().st_mtime_ns
    files: list[FileStat] = []
    for prefix, entry in _entries(directory):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        files.append(FileStat(prefix + entry.name, status.st_size, status.st_mtime_ns))
    files.sort()
    return Listing(tuple(files), directory_mtime_ns)


def _entries(directory: Path) -> list[tuple[str, os.DirEntry[str]]]:
    found: list[tuple[str, os.DirEntry[str]]] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir():
                found.append(("", entry))
            elif RANK_DIRECTORY.fullmatch(entry.name):
                with os.scandir(entry.path) as inner:
                    found += [(f"{entry.name}/", file) for file in inner if not file.is_dir()]
    return [(prefix, entry) for prefix, entry in found if not _UNDECODED.search(entry.name)]


def foreign_link(directory: Path, listing: Listing) -> str | None:
    """A link among the files (or above them, up to ``directory``) that ``is_foreign``. Raises ``OSError``."""
    parents = sorted({file.name.rpartition("/")[0] for file in listing.files} | {""})
    for name in (*parents, *(file.name for file in listing.files)):
        if is_foreign(directory / name):
            return name or directory.name
    return None


def is_foreign(path: Path) -> bool:
    """Whether ``path`` is a link to a file of another user than its own: who may write checkpoints could so have files read
    that only this process's user may read. A link of root's may lead anywhere. Raises ``OSError`` when it is gone."""
    link = path.lstat()
    return stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, path.stat().st_uid)


def detect_format(directory: Path, listing: Listing | None = None) -> Format:
    """As Megatron decides: ``metadata.json``, then rank directories, then ``.metadata``. ``unknown``: nothing tells yet.

    Reads ``.metadata`` where only its keys tell. Raises ``OSError`` when the directory can't be read.
    """
    listing = listing or list_files(directory)
    format = format_by_names(directory, listing)
    try:
        fsdp = format == "torch_dist" and contents.is_fsdp(directory, listing.sizes())
    except contents.NotWholeError:
        fsdp = False
    return "fsdp_dtensor" if fsdp else format


def format_by_names(directory: Place, listing: Listing) -> Format:
    """``detect_format``, except that ``fsdp_dtensor`` is still ``torch_dist``: their names and fingerprints are alike."""
    names = {file.name for file in listing.files}
    if "metadata.json" in names:
        backend = contents.megatron_metadata(directory / "metadata.json").get("sharded_backend")
        return "zarr" if backend == "zarr" else "torch_dist"
    if any(name.startswith("mp_rank_") for name in names):
        return "torch"
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return "torch_dist"
    if "config.json" in names or "adapter_config.json" in names:
        return "huggingface"
    return "unknown"


def weights(listing: Listing, format: str) -> tuple[FileStat, ...]:
    """The files that make the checkpoint what it is; tokenizers and such may come later and change nothing."""
    pattern = _WEIGHTS.get(format)
    return tuple(file for file in listing.files if pattern is None or pattern.fullmatch(file.name))


def fingerprint(directory: Path, listing: Listing | None = None, format: Format | None = None) -> str:
    """Hash of the names, sizes and modification times of the weight files (and of ``integrity.json``'s content).

    The copy of a checkpoint from a store has the fingerprint of what it is a copy of. Raises ``OSError`` when the
    directory can't be read. Reads nothing big.
    """
    if listing is None and (copied := copies.fingerprint_of(directory)) is not None:
        return copied
    listing = listing or list_files(directory)
    return fingerprint_of(directory, listing, format or format_by_names(directory, listing))


def fingerprint_of(directory: Place, listing: Listing, format: Format) -> str:
    """``fingerprint`` of what ``listing`` says. Of a store's objects the ETags count, and their times where there are
    none: the same bytes uploaded again are the same checkpoint."""
    digest = hashlib.sha256()
    for file in weights(listing, format):
        digest.update(f"{file.name}\0{file.size}\0{file.etag or file.mtime_ns}\n".encode())
        if file.name == "integrity.json" and not file.etag:
            digest.update(read_file(directory / file.name, contents.MAX_JSON_BYTES))
    return digest.hexdigest()[:32]
