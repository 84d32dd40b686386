"""Events of the file system say only "look now": many writes make none, and network file systems tell of none."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})  # not "opened": our own reading opens


class Events:
    """File-system events for a root that may not exist yet and for the directories that are being written in it.

    ``changed`` is called, from another thread, whenever a look at the disk is due. Where the system refuses to watch,
    that is said once and nothing is ever called.
    """

    def __init__(self, root: Path, changed: Callable[[], None]):
        self._root = root
        self._changed = changed
        self._watches: dict[Path, tuple[int, Any]] = {}  # path -> (inode, watchdog's watch)
        self._observer: Any = None
        try:
            from watchdog.observers import Observer

            # It tells every event at DEBUG, and calls it an error when a watched directory goes away.
            logging.getLogger("watchdog").setLevel(logging.CRITICAL)
            self._observer = Observer()
            self._observer.daemon = True
            self._observer.start()
        except OSError as error:
            self._give_up(error)

    def follow(self, unfinished: list[Path]) -> None:
        """Watch the root (or its nearest parent that exists) and ``unfinished``, and nothing else."""
        if self._observer is None:
            return
        wanted: dict[Path, int] = {}
        for path in [self._nearest(), *unfinished]:
            try:
                wanted[path] = path.stat().st_ino
            except OSError:
                continue
        for path, (inode, watch) in list(self._watches.items()):
            if wanted.get(path) != inode:  # no longer wanted, or deleted and made anew
                del self._watches[path]
                self._unschedule(watch)
        for path, inode in wanted.items():
            if path not in self._watches and not self._schedule(path, inode):
                return

    def stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(2.0)

    def _nearest(self) -> Path:
        return next(path for path in (self._root, *self._root.parents) if path.is_dir())

    def _schedule(self, path: Path, inode: int) -> bool:
        from watchdog.events import FileSystemEventHandler

        observer = self._observer
        if observer is None:  # stopped by another thread
            return False
        handler = FileSystemEventHandler()
        handler.on_any_event = (  # type: ignore[method-assign]  # a class a handler would say no more
            self._on_root_event if self._root in (path, *path.parents) else self._on_parent_event
        )
        try:
            self._watches[path] = (inode, observer.schedule(handler, str(path), recursive=False))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._give_up(error)
            return False
        self._changed()  # what happened between the look and the watch was not reported
        return True

    def _unschedule(self, watch: Any) -> None:
        try:
            self._observer.unschedule(watch)
        except (KeyError, OSError) as error:  # its directory is gone, and watchdog has dropped it already
            logger.debug("%s: %s", watch, error)

    def _on_root_event(self, event: Any) -> None:
        if event.event_type in _CHANGES:
            self._changed()

    def _on_parent_event(self, event: Any) -> None:
        """A parent may be busy with other things (/tmp): only the next step towards the root matters."""
        paths = [Path(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]
        if event.event_type in _CHANGES and any(path in (self._root, *self._root.parents) for path in paths):
            self._changed()

    def _give_up(self, error: OSError) -> None:
        logger.warning("no file-system events for %s (%s): only the check interval is left", self._root, error)
        observer, self._observer = self._observer, None
        if observer is not None and observer.is_alive():
            observer.stop()
