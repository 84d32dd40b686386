"""Where a training run saves: a directory here, or a prefix in a store. ``Watcher`` asks both the same questions."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from autoeval.checkpoints.events import Events
from autoeval.checkpoints.layout import TRACKER, FileStat, Listing, Tracker, list_files, look_at_tracker, parse_tracker
from autoeval.checkpoints.place import Place, StoredPlace
from autoeval.storage import ObjectStore, StoredObject

logger = logging.getLogger(__name__)

RELIST_SECONDS = 300.0  # between two looks at a complete checkpoint in a store, when no tracker tells of a save
MOST_TRACKER_BYTES = 64


class LocalSaves:
    """A directory. It need not exist."""

    far = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def tracker(self) -> Tracker:
        return look_at_tracker(self.path)

    def names(self) -> list[str]:
        """Of the directories in it."""
        try:
            with os.scandir(self.path) as entries:
                return [entry.name for entry in entries if _is_directory(entry)]
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("%s cannot be read: %s", self.path, error.strerror)
            return []

    def look(self, name: str) -> tuple[Place, Listing]:
        """Raises ``OSError``."""
        directory = self.path / name
        return directory, list_files(directory)

    def clock_offset(self) -> float:
        return 0.0

    def settled(self, names: Collection[str]) -> None:
        """Which directories were found complete."""

    def events(self, changed: Callable[[], None]) -> Events | None:
        return Events(self.path, changed)

    def is_there(self) -> bool:
        return self.path.is_dir()


class StoredSaves:
    """A prefix in a store. One look is one listing of the prefix, and one of each directory below it that is not known to
    be complete; those that are, are listed again when the tracker has moved, and every ``RELIST_SECONDS``.

    All methods raise ``StorageError`` when the store cannot be asked.
    """

    far = True

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._mark: StoredObject | None = None  # the tracker, as it was last listed
        self._tracker = Tracker(None)
        self._names: list[str] = []
        self._settled: dict[str, tuple[StoredObject | None, float, tuple[Place, Listing]]] = {}
        self._looks: dict[str, tuple[Place, Listing]] = {}

    def __str__(self) -> str:
        return self.store.url

    def tracker(self) -> Tracker:
        objects, self._names = self.store.children()
        mark = objects.get(TRACKER)
        if mark != self._mark:
            self._tracker = Tracker(None) if mark is None else self._read_tracker(mark)
            self._mark = mark
        return self._tracker

    def names(self) -> list[str]:
        """As ``tracker`` found them: both come with one listing."""
        return self._names

    def look(self, name: str) -> tuple[Place, Listing]:
        """Raises ``FileNotFoundError`` when nothing is left there."""
        mark, moment, known = self._settled.get(name, (None, -RELIST_SECONDS, None))
        if known is None or mark != self._mark or time.monotonic() - moment >= RELIST_SECONDS:
            self._settled.pop(name, None)
            objects = self.store.objects(name)
            if not objects:
                raise FileNotFoundError(f"{self.store.url_of(name)} is not there")
            known = StoredPlace(self.store, name, objects), listing_of(objects.values())
        self._looks[name] = known
        return known

    def settled(self, names: Collection[str]) -> None:
        for name in names:
            before = self._settled.get(name)
            if before is None or before[2] is not self._looks[name]:
                self._settled[name] = (self._mark, time.monotonic(), self._looks[name])
        self._settled = {name: known for name, known in self._settled.items() if name in names}
        self._looks.clear()

    def clock_offset(self) -> float:
        return self.store.clock_offset()

    def events(self, changed: Callable[[], None]) -> Events | None:
        return None

    def is_there(self) -> bool:
        return True  # whoever can list it knows what is not in it

    def _read_tracker(self, mark: StoredObject) -> Tracker:
        try:
            text = self.store.read(mark.name) if mark.size <= MOST_TRACKER_BYTES else b"?" * MOST_TRACKER_BYTES
        except FileNotFoundError:
            return Tracker(None)
        return parse_tracker(text, mark.modified_ns, self.store.url_of(mark.name))


def listing_of(objects: Collection[StoredObject]) -> Listing:
    files = (FileStat(one.name, one.size, one.modified_ns, one.etag) for one in objects)
    return Listing(tuple(sorted(files)), 0, ordered=False)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: no reason not to see the others
        return False
