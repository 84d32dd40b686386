"""Checkpoints and tokenizers that lie in an object store: whether it lists, whether it lets read, whether there is room."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoeval.checkpoints import CheckpointChanged, CheckpointVanished, is_copied, plan_copy
from autoeval.config import AutoEval
from autoeval.doctor.finding import Finding, ok, problem, warning
from autoeval.location import Url
from autoeval.planning import WatchOptions, make_watcher
from autoeval.storage import StorageError
from autoeval.storage.cached import cached_path

PAGE = "docs/object_storage.md says which settings and rights are needed"


def examine_store(config: AutoEval, watch: WatchOptions) -> Iterator[Finding]:
    """The store of ``checkpoint_path``, asked as the daemon asks it."""
    watcher = make_watcher(config, watch)
    store = watcher.store
    assert store is not None
    try:
        result = watcher.scan()
        skew = store.clock_offset()
        if result.trouble:
            yield problem("checkpoint_path", result.trouble, "a store that can be listed and read", PAGE)
            return
        counts = f"{len(result.complete)} complete and due, {len(result.waiting)} not complete"
        seconds = f"looked at every {watcher.check_interval_seconds:g} s"
        yield ok("checkpoint_path", f"{watcher.where}: {counts}; {seconds}")
        for iteration, reason in (*result.abandoned, *result.unsupported):
            yield warning(
                "checkpoint_path", f"iteration {iteration} is never evaluated: {reason}", "a complete save", PAGE
            )
        if abs(skew) > 60:
            found = f"the store's clock differs from this machine's by {skew:.0f} s"
            yield warning(
                "clock", found, "less than a minute: requests are signed with the time", "set the clock (NTP)"
            )
        if result.complete:
            newest = max(result.complete, key=lambda one: one.iteration)
            needed = 0 if is_copied(newest) else plan_copy(newest, store).needed
            yield _room(config, needed, newest.url)
    except StorageError as error:
        yield problem("checkpoint_path", str(error), "a store that can be listed and read", PAGE)
    except (CheckpointVanished, CheckpointChanged) as error:
        yield warning("copies", str(error), "a checkpoint that stays for as long as it is copied", "ask again")


def _room(config: AutoEval, needed: int, url: str) -> Finding:
    free = shutil.disk_usage(config.work_dir).free
    if config.copies.disk_gb is not None:
        free = min(free, int(config.copies.disk_gb * 1e9))
    most = config.copies.most
    found = f"the copy of {url} takes {needed / 1e9:.3g} GB, {most} at a time; {free / 1e9:.3g} GB may be taken in {config.work_dir}"
    if needed > free:
        return problem("copies", found, "room for one copy", "make room, or raise copies.disk_gb")
    if needed * most > free:
        return warning("copies", found, f"room for {most} copies", "make room, or lower copies.most")
    return ok("copies", found)


def examine_location(check: str, url: Url, options: Mapping[str, Any]) -> tuple[Finding, Path | None]:
    """A tokenizer in a store, fetched as the worker fetches it."""
    try:
        path = cached_path(url, options)
    except (StorageError, OSError) as error:
        return problem(check, str(error), "a file or a directory in a store that can be read", PAGE), None
    return ok(check, f"{url}, copied to {path}"), path
