"""The work directory and the checkpoint directory: what is tried there is really done, and cleared away again."""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from autoeval.doctor.finding import Finding, ok, problem, warning
from autoeval.heartbeat import read_heartbeat
from recorder.files import sync_directory
from recorder.ledger_schema import open_database

SKEW_WARNING_SECONDS, SKEW_PROBLEM_SECONDS = 2.0, 300.0
LEAST_INODES = 2000
# What a former daemon, perhaps of another user, has left here and this one must be able to write.
_WRITTEN = ("ledger.sqlite", "daemon.lock", "report.html", "leaderboard.csv", "settings.json", "logs")


def examine_work_dir(work_dir: Path) -> Iterator[Finding]:
    """Writing, renaming, locking and a database in ``work_dir``; its clock. Makes the directory when it is not there."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work_dir, prefix=".doctor-") as name:
            place = Path(name)
            _write_and_rename(place)
            yield ok("work_dir", f"{work_dir}: a file was written, synced and renamed")
            yield _locks(place)
            yield _database(place)
            yield _clock(place, "work_dir")
    except OSError as error:
        yield problem("work_dir", f"{work_dir}: {_told(error)}", "a directory that can be written", _remedy(error))
        return
    yield from _former_files(work_dir)
    yield from _at_work(work_dir)


def _write_and_rename(place: Path) -> None:
    """Raises ``OSError``. What a result file needs, and 1 MB at that: an empty file fits a full disk."""
    with (place / "new").open("wb") as stream:
        stream.write(os.urandom(1 << 20))
        stream.flush()
        os.fsync(stream.fileno())
    (place / "new").replace(place / "file")
    sync_directory(place)


def _locks(place: Path) -> Finding:
    expected = "flock(2) that shuts out a second process"
    action = "mount it with locks (NFS: version 4, or with lockd; Lustre: -o flock), or start no second daemon yourself"
    with (place / "lock").open("w") as first, (place / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ok("file locks", "a second lock is refused")
        except OSError as error:
            return warning("file locks", _told(error), expected, action)
    return warning("file locks", "two open files had the lock at once", expected, action)


def _database(place: Path) -> Finding:
    try:
        connection = open_database(place / "ledger.sqlite")
        connection.execute("CREATE TABLE written (x)")
        connection.close()
    except sqlite3.Error as error:
        action = "put work_dir on a local disk: SQLite's write-ahead log needs shared memory and locks"
        return problem("ledger", f"SQLite cannot work here: {error}", "a database in write-ahead-log mode", action)
    return ok("ledger", f"SQLite {sqlite3.sqlite_version} works here")


def _clock(place: Path, check: str) -> Finding:
    """Times of files are compared with this machine's clock: which saves are new, whether a daemon is alive."""
    path = place / "clock"
    before = time.time()
    path.touch()
    after, written = time.time(), path.stat().st_mtime
    skew = 0.0  # where it was written between the two, however long that took
    if not before <= written <= after:
        skew = written - after if written > after else written - before
    told = (
        f"the file system's clock of {check} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    )
    expected = f"the same time, within {SKEW_WARNING_SECONDS:.0f} s"
    if abs(skew) >= SKEW_PROBLEM_SECONDS:
        return problem("clock", told, expected, "set the clocks (chrony or NTP on this machine and the file server)")
    if abs(skew) >= SKEW_WARNING_SECONDS:
        return warning("clock", told, expected, "set the clocks (chrony or NTP on this machine and the file server)")
    return ok("clock", f"files of {check} have this machine's time, within {max(0.1, abs(skew)):.1f} s")


def _former_files(work_dir: Path) -> Iterator[Finding]:
    there = [work_dir / name for name in _WRITTEN if (work_dir / name).exists()]
    there += sorted((work_dir / "logs").glob("*.log")) if (work_dir / "logs").is_dir() else []
    refused = [path for path in there if not os.access(path, os.W_OK)]
    if refused:
        owners = ", ".join(f"{path.relative_to(work_dir)} ({_owner(path)}'s)" for path in refused[:8])
        yield problem(
            "files of a former run",
            f"{len(refused)} in {work_dir} cannot be written by {getpass.getuser()}: {owners}",
            "files that this user may write",
            f"chown -R {getpass.getuser()} {work_dir}, or run as their owner",
        )


def _at_work(work_dir: Path) -> Iterator[Finding]:
    beat = read_heartbeat(work_dir)
    if beat is not None and beat.state != "ended":
        if beat.silent:
            yield warning(
                "daemon", str(beat), "a sign of life", "look at logs/daemon.log; start it again if it is gone"
            )
        else:
            yield ok("daemon", f"one is at work here already: {beat}")


def examine_disk(work_dir: Path, checkpoint_bytes: int, converted_bytes: int, kept: int, linked: bool) -> Finding:
    """Whether there is room. ``converted_bytes`` of one converted model (0: none is made), ``kept`` of them at once;
    ``checkpoint_bytes`` of the newest checkpoint, which a pin keeps when training deletes it (``linked``)."""
    usage = shutil.disk_usage(work_dir)
    now, whole = converted_bytes, kept * converted_bytes + (checkpoint_bytes if linked else 0)
    parts = [f"{kept} converted models of {_gb(converted_bytes)}"] if converted_bytes else []
    parts += [f"a pinned checkpoint of {_gb(checkpoint_bytes)} that training has deleted"] if linked else []
    need = f"{_gb(whole)} ({', '.join(parts)})" if parts else "little: results and logs only"
    found = f"{_gb(usage.free)} of {_gb(usage.total)} free on the disk of {work_dir}, needed: {need}"
    action = "make room, put work_dir on a larger disk, or lower model.keep_converted"
    stats = os.statvfs(work_dir)
    if usage.free < now + (64 << 20):
        return problem("disk space", found, f"at least {_gb(now + (64 << 20))}: one model and its results", action)
    if stats.f_files and stats.f_favail < LEAST_INODES:
        return problem("disk space", f"{stats.f_favail} inodes free", f"at least {LEAST_INODES}", action)
    if usage.free < whole:
        return warning("disk space", found, f"{_gb(whole)}", action)
    return ok("disk space", found)


def examine_pins(newest: Path, work_dir: Path) -> tuple[Finding, bool]:
    """Whether files of the checkpoint ``newest`` can be hard-linked into ``work_dir``: really done with one."""
    file = next((path for path in sorted(newest.rglob("*")) if path.is_file()), None)
    expected = "a hard link, which keeps a checkpoint that training deletes before its turn"
    if file is None:
        return warning("pins", f"{newest} has no files", expected, "look at the checkpoint"), False
    try:
        with tempfile.TemporaryDirectory(dir=work_dir, prefix=".doctor-") as place:
            os.link(os.path.realpath(file), Path(place) / "pin")
    except OSError as error:
        action = {
            errno.EXDEV: "put work_dir on the file system of the checkpoints, or let training keep them for longer",
            errno.EPERM: "run as the user that trains (fs.protected_hardlinks forbids links to files of others)",
            errno.EACCES: "run as the user that trains",
        }.get(error.errno or 0, _remedy(error))
        told = "work_dir is on another file system" if error.errno == errno.EXDEV else _told(error)
        found = f"{told}: a checkpoint that is deleted before its turn is missed"
        return warning("pins", found, expected, action), False
    return ok("pins", "checkpoints are held by hard links, which cost nothing until training deletes them"), True


def examine_readable(newest: Path) -> Finding:
    """Whether each file of the checkpoint can be opened: its names and sizes can be seen without that."""
    count, refused = 0, []
    for path in sorted(newest.rglob("*")):
        try:
            if path.is_file():
                count += 1
                with path.open("rb") as stream:
                    stream.read(1)
        except OSError as error:
            refused.append(f"{path.relative_to(newest)}: {error.strerror}")
    if refused:
        found = f"{newest}: {len(refused)} of {count} files cannot be read: {', '.join(refused[:5])}"
        return problem("newest checkpoint", found, "files that this user can read", "chmod or chown them, or umask 022")
    return ok("newest checkpoint", f"{newest}: all {count} files can be read")


def examine_file(check: str, path: Path, *, may_come: bool = False) -> Finding:
    """A file or directory that the configuration names. One that training makes ``may_come`` later."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb") as stream:
                stream.read(1)
    except FileNotFoundError:
        if may_come:
            return warning(check, f"{path} does not exist yet", "a file of the training run", "wait, or check the name")
        return problem(check, f"{path} does not exist", "a file", "check the name in the configuration")
    except OSError as error:
        return problem(check, f"{path}: {_told(error)}", "a file that can be read", _remedy(error))
    return ok(check, str(path))


def _told(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


def _remedy(error: OSError) -> str:
    return {
        errno.EACCES: f"let {getpass.getuser()} (uid {os.geteuid()}) write there: chown or chmod, or another directory",
        errno.EPERM: f"let {getpass.getuser()} (uid {os.geteuid()}) write there: chown or chmod, or another directory",
        errno.EROFS: "another directory: this file system is mounted read-only",
        errno.ENOSPC: "make room: the disk is full",
        errno.EDQUOT: "make room: the user's quota is used up",
        errno.ESTALE: "mount the network file system again",
        errno.ENOTDIR: "a path whose parents are directories",
    }.get(error.errno or 0, "mend that, or name another directory")


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"uid {path.stat().st_uid}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
