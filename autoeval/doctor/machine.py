"""This machine: how checkpoints are noticed on it, and its limits."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoeval.doctor.finding import Finding, ok, warning

_INOTIFY = Path("/proc/sys/fs/inotify")
_REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "gluster", "pvfs")
LEAST_FILES = 1024
EVENT_SECONDS = 2.0


def examine_events(directory: Path, check_interval_minutes: float) -> Iterator[Finding]:
    """Whether file-system events tell of new checkpoints in ``directory``, or only the check interval does."""
    interval = f"a new checkpoint is noticed within {check_interval_minutes:g} min (--check-interval)"
    limits = ", ".join(f"{path.name} {path.read_text().strip()}" for path in sorted(_INOTIFY.glob("max_user_*")))
    refused = _watch_refused(directory)
    if refused is not None:
        yield warning(
            "inotify",
            f"{directory} cannot be watched: {refused} ({limits}); {interval}",
            "a free watch and instance for this user",
            "sysctl fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=1048576 (or end what holds them), "
            "or a shorter --check-interval",
        )
    else:
        yield ok("inotify", f"{directory} is watched ({limits})")
    kind = file_system_of(directory)
    if kind.startswith(_REMOTE):
        yield warning(
            "file-system events",
            f"{directory} is on {kind}: what other hosts write makes no events here; {interval}",
            "a file system of this host, or a short check interval",
            "give --check-interval 1: a look costs a few system calls a checkpoint",
        )


def _watch_refused(directory: Path) -> str | None:
    """Why the system gives no watch on ``directory``; ``None`` when it does."""
    from watchdog.events import FileSystemEventHandler
    from watchdog.observers import Observer

    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    observer: Any = Observer()
    try:
        observer.schedule(FileSystemEventHandler(), str(place), recursive=False)
        observer.start()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if observer.is_alive():
            observer.stop()
            observer.join(EVENT_SECONDS)
    return None


def file_system_of(path: Path) -> str:
    """The type of the mount that ``path`` is on, as /proc/self/mountinfo has it; empty where there is no such file."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    path = next((one for one in (path, *path.parents) if one.exists()), Path("/")).resolve()
    best = ("", "")
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mounted = fields.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(mounted) and len(mounted) >= len(best[0]):
            best = (mounted, rest.split()[0])
    return best[1]


def examine_limits(model_bytes: int) -> Iterator[Finding]:
    """Open files, and memory against a model of ``model_bytes`` (0: unknown) on the CPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < LEAST_FILES:
        yield warning("open files", f"at most {soft}", f"at least {LEAST_FILES}", f"ulimit -n {min(hard, 4096)}")
    available = _available_memory()
    if available is None:
        return
    found = f"{available / 1e9:.1f} GB of memory available on {os.cpu_count()} processors"
    if model_bytes and available < model_bytes + 10**9:
        expected = f"{(model_bytes + 10**9) / 1e9:.1f} GB, if the model is run on the CPU"
        yield warning("memory", found, expected, "run on a GPU or on a larger machine, or set model.dtype: bfloat16")
    else:
        yield ok("memory", found)


def _available_memory() -> int | None:
    """Bytes: what the kernel has to give, within the limit of this process's control group."""
    found = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(file).read_text())
            found = limit if found is None else min(found, limit)
    return found
