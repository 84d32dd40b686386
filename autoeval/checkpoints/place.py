"""Where the files of a checkpoint are: a directory here, or a listing of a store. The checks read both the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, TypeAlias

from autoeval.storage import ObjectStore, StoredObject
from recorder.untrusted import open_regular, read_regular


class StoredPlace:
    """A directory in a store as it was listed, or a file in it. Equal ones hold equal bytes, as far as ETags can tell.

    It has of ``pathlib.Path`` what the checks of a checkpoint need; what was not listed is not there.
    """

    def __init__(self, store: ObjectStore, within: str, listed: Mapping[str, StoredObject], file: str = "") -> None:
        self.store, self.within, self.listed = store, within, listed
        self._file = file

    def __truediv__(self, name: str) -> StoredPlace:
        file = f"{self._file}/{name}" if self._file else name
        # A file keeps nothing but itself: caches hold on to thousands of them, each of another listing.
        listed = {file: self.listed[file]} if file in self.listed else self.listed
        return StoredPlace(self.store, self.within, listed, file)

    @property
    def name(self) -> str:
        return (self._file or self.within).rpartition("/")[2]

    def __str__(self) -> str:
        directory = self.store.url_of(self.within)
        return f"{directory}/{self._file}" if self._file else directory

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredPlace) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[str, StoredObject | None]:
        return str(self), self.listed.get(self._file)

    def stored(self) -> StoredObject:
        """Raises ``FileNotFoundError``."""
        if (found := self.listed.get(self._file)) is None:
            raise FileNotFoundError(f"{self} is not there")
        return found

    def open(self) -> IO[bytes]:
        return self.store.open(self.stored(), self.within)


Place: TypeAlias = Path | StoredPlace


def open_file(place: Place) -> IO[bytes]:
    """Raises ``OSError``, of a store ``StorageError`` too."""
    return place.open() if isinstance(place, StoredPlace) else open_regular(place)


def read_file(place: Place, most: int) -> bytes:
    """All bytes. Raises as ``open_file`` does, and ``OSError`` when there are more than ``most``."""
    if not isinstance(place, StoredPlace):
        return read_regular(place, most)
    stored = place.stored()
    if stored.size > most:
        raise OSError(f"{place} has {stored.size} bytes, at most {most} were expected")
    name = f"{place.within}/{stored.name}" if place.within else stored.name
    return place.store.read(name)
